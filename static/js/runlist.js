// Runs in tables: the list of all, newest first, and the table that groups have too.

import { metrics } from "./catalog.js";
import { tell } from "./dialogs.js";
import { element, refill, setText, template, timeElement } from "./dom.js";
import { duration, integer, number, percent, words } from "./format.js";
import { ListFeed } from "./listfeed.js";
import { isLive, progressOf } from "./run.js";

/** Show the list in `place`; what it returns takes it down again. */
export function showRunList(place, onStatus) {
  const view = template("list-view");
  const table = new RunsTable("Runs, newest first");
  const older = view.querySelector(".older");
  const feed = new ListFeed(draw, onStatus);
  table.element.hidden = true;
  older.before(table.element);
  older.addEventListener("click", () => feed.loadOlder().catch((error) => tell(error.message)));
  place.replaceChildren(view);
  feed.open();
  return { close: () => feed.close(), hurry: () => feed.hurry() };

  function draw() {
    const runs = feed.runs;
    if (runs === null) return;
    view.querySelector(".loading").hidden = true;
    view.querySelector(".empty").hidden = runs.length > 0;
    table.element.hidden = runs.length === 0;
    older.hidden = !feed.hasMore;
    table.update(runs);
  }
}

/** A table of runs. Rows are changed in place, so focus and selection stay where they are. */
export class RunsTable {
  element = template("runs-table");
  #metric = this.element.querySelector("th[data-metric]");
  #rows = new Map();
  #runs = [];

  constructor(caption) {
    setText(this.element.caption, caption);
    this.#nameMetric();
  }

  /** Show these runs, in this order. */
  update(runs) {
    this.#runs = runs;
    const body = this.element.tBodies[0];
    runs.forEach((run, position) => {
      if (!this.#rows.has(run.id)) this.#rows.set(run.id, new Row(run, this.#metric));
      const row = this.#rows.get(run.id);
      if (body.children[position] !== row.element) body.insertBefore(row.element, body.children[position] ?? null);
      row.update(run);
    });
    const shown = new Set(runs.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (shown.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
  }

  /** index.html says which metric is shown, the service what it is called. */
  async #nameMetric() {
    const { metric } = this.#metric.dataset;
    setText(this.#metric, (await metrics()).find(({ key }) => key === metric)?.label ?? metric);
    this.update(this.#runs);
  }
}

class Row {
  element;
  #metric;
  #name;
  #tags = element("span", {});
  #state = element("span", {});
  #doing = element("span", { class: "hint" });
  #alerts = element("span", { class: "alert-count" });
  #bar = element("progress", { max: 1 });
  #done = element("span", {});
  #eta = element("td", { "data-label": "Time left" });
  #value = element("td", { class: "number" });

  constructor({ id, preset, created_at }, metric) {
    this.#metric = metric;
    this.#name = element("a", { href: `#/runs/${id}` });
    this.element = element(
      "tr",
      { "data-run": id },
      element("td", { "data-label": "Run" }, this.#name, element("span", { class: "hint" }, preset), this.#tags),
      element("td", { "data-label": "State" }, this.#state, this.#doing, this.#alerts),
      element("td", { "data-label": "Progress" }, this.#bar, this.#done),
      this.#eta,
      this.#value,
      element("td", { "data-label": "Created" }, timeElement(created_at)),
    );
  }

  update(run) {
    const { step, total, ratio } = progressOf(run);
    setText(this.#name, run.name);
    refill(this.#tags, run.tags, () => run.tags.map((tag) => element("span", { class: "tag" }, tag)));
    this.#state.className = `state state-${run.state}`;
    setText(this.#state, words(run.state));
    setText(this.#doing, doing(run));
    this.#alerts.hidden = run.alert_count === 0;
    setText(this.#alerts, run.alert_count === 1 ? "1 alert" : `${integer(run.alert_count)} alerts`);
    this.#bar.hidden = ratio === null;
    this.#bar.value = ratio ?? 0;
    this.#bar.setAttribute("aria-label", `Progress of ${run.name}`);
    setText(this.#done, total === null ? "" : `${integer(step)} / ${integer(total)} · ${percent(ratio)}`);
    setText(this.#eta, duration(isLive(run) ? run.progress?.eta_s : null));
    this.#value.dataset.label = this.#metric.textContent;
    const value = run.metrics[this.#metric.dataset.metric];
    this.#value.classList.toggle("bad", typeof value === "string");
    setText(this.#value, number(value));
  }
}

function doing(run) {
  if (run.queue_position !== null) return `place ${run.queue_position} in the queue`;
  return words(run.phase ?? run.state_reason ?? "");
}
