// The list of runs, newest first. Rows are changed in place, so focus and selection stay where they are.

import { metrics } from "./catalog.js";
import { tell } from "./dialogs.js";
import { element, setText, template, timeElement } from "./dom.js";
import { duration, integer, number, percent, words } from "./format.js";
import { ListFeed } from "./listfeed.js";
import { isLive, progressOf } from "./run.js";

/** Show the list in `place`; what it returns takes it down again. */
export function showRunList(place, onStatus) {
  const view = template("list-view");
  place.replaceChildren(view);
  const metric = view.querySelector("th[data-metric]");
  nameColumn(metric);
  const rows = new Map();
  const older = view.querySelector(".older");
  const feed = new ListFeed(draw, onStatus);
  older.addEventListener("click", () => feed.loadOlder().catch((error) => tell(error.message)));
  feed.open();
  return { close: () => feed.close(), hurry: () => feed.hurry() };

  function draw() {
    const runs = feed.runs;
    if (runs === null) return;
    view.querySelector(".loading").hidden = true;
    view.querySelector(".empty").hidden = runs.length > 0;
    view.querySelector("table").hidden = runs.length === 0;
    older.hidden = !feed.hasMore;
    const body = view.querySelector("tbody");
    runs.forEach((run, position) => {
      if (!rows.has(run.id)) rows.set(run.id, new Row(run, metric));
      const row = rows.get(run.id);
      if (body.children[position] !== row.element) body.insertBefore(row.element, body.children[position] ?? null);
      row.update(run);
    });
  }
}

/** The one metric that the list shows; index.html says which, the service what it is called. */
export async function nameColumn(header) {
  setText(header, (await metrics()).find(({ key }) => key === header.dataset.metric)?.label ?? header.dataset.metric);
}

/** A run in a table like that of the list. */
export class Row {
  element;
  #metric;
  #state = element("span", {});
  #doing = element("span", { class: "hint" });
  #alerts = element("span", { class: "alert-count" });
  #bar = element("progress", { max: 1 });
  #done = element("span", {});
  #eta = element("td", { "data-label": "Time left" });
  #value = element("td", { class: "number" });

  constructor(run, metric) {
    this.#metric = metric;
    const tags = run.tags.map((tag) => element("span", { class: "tag" }, tag));
    this.#bar.setAttribute("aria-label", `Progress of ${run.name}`);
    this.element = element(
      "tr",
      { "data-run": run.id },
      element(
        "td",
        { "data-label": "Run" },
        element("a", { href: `#/runs/${run.id}` }, run.name),
        element("span", { class: "hint" }, run.preset),
        tags,
      ),
      element("td", { "data-label": "State" }, this.#state, this.#doing, this.#alerts),
      element("td", { "data-label": "Progress" }, this.#bar, this.#done),
      this.#eta,
      this.#value,
      element("td", { "data-label": "Created" }, timeElement(run.created_at)),
    );
  }

  update(run) {
    const { step, total, ratio } = progressOf(run);
    this.#state.className = `state state-${run.state}`;
    setText(this.#state, words(run.state));
    setText(this.#doing, doing(run));
    this.#alerts.hidden = run.alert_count === 0;
    setText(this.#alerts, run.alert_count === 1 ? "1 alert" : `${integer(run.alert_count)} alerts`);
    this.#bar.hidden = ratio === null;
    this.#bar.value = ratio ?? 0;
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
