// What a completed group leaves: how its models differ, the training report, the archive for Phase 2; and a single run's report.

import { authorization, get, hasToken, post } from "./api.js";
import { tell, untell } from "./dialogs.js";
import { element, refill, table } from "./dom.js";
import { number, words } from "./format.js";

const EVERY_MS = 2000;

export class Outcome {
  #place;
  #url;
  #isShown = false;

  constructor(place, groupId) {
    this.#place = place;
    this.#url = `/v1/groups/${groupId}`;
  }

  /** Show it once every run is completed. */
  update(runs) {
    if (this.#isShown || !runs.length || !runs.every(({ state }) => state === "completed")) return;
    this.#isShown = true;
    const diversity = element("div", {}, element("p", { class: "hint" }, "How the models differ is not measured yet."));
    const links = element(
      "div",
      { class: "buttons" },
      reportMaker(this.#url),
      maker("Hand-off archive", "handoff.tar", () => this.#handoff()),
    );
    this.#place.replaceChildren(element("h3", {}, "Outcome"), ...(runs.length > 1 ? [diversity] : []), links);
    if (runs.length > 1) this.#followDiversity(diversity);
  }

  async #followDiversity(place) {
    for (; this.#place.isConnected; await pause()) {
      const found = await get(`${this.#url}/diversity`).catch(() => null);
      if (found?.result) refill(place, found.result, () => differences(found.result));
      if (found?.state === "failed") refill(place, found.job, () => failure(found.job));
      if (found && found.state !== "measuring" && found.state !== "absent") return;
    }
  }

  async #handoff() {
    const url = `${this.#url}/handoff`;
    const built = await fetch(url, { headers: { ...authorization(), Range: "bytes=0-0" } });
    if (built.ok) return url;
    let job = await post(url, {});
    while (job.ended_at === null) {
      await pause();
      job = await get(`/v1/jobs/${job.id}`);
    }
    if (job.state !== "completed") throw new Error(job.detail ?? job.state);
    return url;
  }
}

/** The training report of what `url` names, a group or a run: made as of now when it is asked for. */
export function reportMaker(url) {
  return maker("Training report", "report.html", async () => {
    for (;;) {
      const answer = await fetch(`${url}/report`, { headers: { ...authorization(), Accept: "text/html" } });
      if (answer.status === 200) return `${url}/report`;
      if (answer.status !== 202) throw new Error((await answer.json()).detail);
      await pause();
    }
  });
}

/** A button that makes something and then becomes the link to it. */
function maker(label, file, make) {
  const button = element("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    untell();
    button.disabled = true;
    button.textContent = `${label} is being made …`;
    try {
      const href = await reachable(await make());
      button.replaceWith(element("a", { href, target: "_blank", download: hasToken() ? file : null }, label));
    } catch (error) {
      tell(`${label}: ${error.message}`);
      button.disabled = false;
      button.textContent = label;
    }
  });
  return button;
}

/** A link cannot send the token; where there is one, what it leads to is taken here. */
async function reachable(url) {
  if (!hasToken()) return url;
  const answer = await fetch(url, { headers: { ...authorization(), Accept: "text/html" } });
  if (!answer.ok) throw new Error((await answer.json()).detail);
  return URL.createObjectURL(await answer.blob());
}

function failure({ detail, state }) {
  return element("p", { class: "hint" }, `How the models differ could not be measured: ${detail ?? words(state)}.`);
}

function differences({ members, pairs, metrics, required_order: order }) {
  const rows = members.map((one) => [
    one.preset,
    number(one.halting_steps),
    number(one.ltm_usage),
    number(one.surprise_rate),
    number(one.ms_per_token?.median),
    number(one.cross_entropy),
  ]);
  const labels = ["Model", "Halting steps", "Memory used", "Surprise rate", "ms a token", "Cross-entropy"];
  const preset = Object.fromEntries(members.map((one) => [one.name, one.preset]));
  const alike = pairs.map(({ of: [one, other], agreement, weights }) => [
    `${preset[one]}, ${preset[other]}`,
    number(agreement),
    number(weights.relative_l2),
  ]);
  const holds = order.holds === null ? "not asked of these presets" : order.holds ? "holds" : "does not hold";
  const spreads = Object.entries(metrics).map(([key, value]) => `${key} ${number(value)}`);
  return [
    table("How the models differ", labels, rows),
    table("How alike two of them are", ["Models", "Same next token, 0..1", "Weights apart, unrelated 1.41"], alike),
    element("p", { class: "hint" }, `Spread: ${spreads.join(", ")}. ${order.rule}: ${holds}.`),
  ];
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, EVERY_MS));
}
