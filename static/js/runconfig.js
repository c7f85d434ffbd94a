// A run's whole configuration, with what differs from its preset marked.

import { presets } from "./catalog.js";
import { differences, leaves } from "./configuration.js";
import { element, refill } from "./dom.js";
import { plain } from "./format.js";

/** A run's configuration never changes: it is put into `place` once. */
export async function showConfiguration(place, run) {
  if (place.dataset.version) return;
  const preset = (await presets()).find(({ name }) => name === run.preset)?.config ?? {};
  const changed = new Map(differences(run.config, preset).map((found) => [found.path, found.preset]));
  refill(place, run.id, () => [
    element(
      "p",
      { class: "hint" },
      changed.size
        ? `${changed.size} of these differ from the preset ${run.preset}.`
        : `As in the preset ${run.preset}.`,
    ),
    element(
      "div",
      { class: "config-sections" },
      groups(run.config).map(([name, entries]) => group(name, entries, changed)),
    ),
  ]);
}

function groups(config) {
  const grouped = new Map();
  for (const [path, value] of leaves(config)) {
    const section = path.includes(".") ? path.slice(0, path.indexOf(".")) : "run";
    grouped.set(section, [...(grouped.get(section) ?? []), [path, value]]);
  }
  return [...grouped];
}

function group(name, entries, changed) {
  const rows = entries.map(([path, value]) => {
    const isChanged = changed.has(path);
    const usual = isChanged && element("span", { class: "hint" }, ` instead of ${plain(changed.get(path))}`);
    return element(
      "div",
      { class: isChanged ? "changed" : null },
      element("dt", {}, path.slice(path.indexOf(".") + 1)),
      element("dd", {}, plain(value), usual),
    );
  });
  return element("section", {}, element("h3", {}, name), element("dl", { class: "facts-list" }, rows));
}
