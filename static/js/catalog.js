// What the service offers: metrics, presets, the schema of a configuration. Each is asked for once, until it is answered.

import { get, isPassing } from "./api.js";

const RETRY_MS = 2000;
const answers = new Map();

export async function metrics() {
  return (await once("/v1/metrics")).data;
}

/** [{name, config, recipes}] */
export async function presets() {
  return (await once("/v1/presets")).data;
}

export function configSchema() {
  return once("/v1/config/schema");
}

function once(path) {
  if (!answers.has(path)) answers.set(path, patiently(path));
  return answers.get(path);
}

async function patiently(path) {
  for (;;) {
    try {
      return await get(path);
    } catch (error) {
      if (!isPassing(error)) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}
