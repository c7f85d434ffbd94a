// What was measured on held-out items: the newest evaluation as a table, older ones behind it, and a button for another.

import { get, post } from "./api.js";
import { tell, untell } from "./dialogs.js";
import { element, refill, table, timeElement } from "./dom.js";
import { integer, NOTHING, number, words } from "./format.js";

const EVERY_MS = 2000;
const SAMPLE = 100;
const COLUMNS = ["Dataset", "Figure", "Items", "Value", "95 %", "Chance", "Untrained", "Target", "Forecast", ""];

export class Evaluations {
  #place;
  #url;
  #seen = null;
  #timer = null;
  #isClosed = false;
  #canBegin = false;

  constructor(place, id) {
    this.#place = place;
    this.#url = `/v1/runs/${id}/evaluations`;
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  /** Look again when there is something new: another evaluation told of, a first checkpoint, an end. */
  follow(events, run, checkpoints) {
    this.#canBegin = checkpoints.some(({ removed_at }) => removed_at === null);
    const version = `${events.findLast(({ kind }) => kind === "evaluation")?.seq} ${run.state} ${this.#canBegin}`;
    if (version === this.#seen) return;
    this.#seen = version;
    this.#look();
  }

  async #look() {
    clearTimeout(this.#timer);
    if (this.#isClosed) return;
    try {
      const { data } = await get(this.#url, { limit: 10 });
      this.#show(data);
      if (data.some(isUnfinished) && !this.#isClosed) this.#timer = setTimeout(() => this.#look(), EVERY_MS);
    } catch {
      this.#timer = setTimeout(() => this.#look(), 5 * EVERY_MS); // the stream says that the service is away
    }
  }

  #show(jobs) {
    refill(this.#place, [jobs, this.#canBegin], () => {
      const done = jobs.filter(({ state }) => state === "completed");
      return [
        ...jobs.filter(isUnfinished).map(progress),
        ...jobs.slice(0, 1).filter(({ state }) => state === "failed").map(failure),
        ...done.slice(0, 1).map(report),
        ...done.slice(1).map(older),
        jobs.length === 0 && element("p", { class: "hint" }, "None yet."),
        this.#canBegin && !jobs.some(isUnfinished) && this.#buttons(),
      ];
    });
  }

  #buttons() {
    const begin = (limit) => async () => {
      untell();
      try {
        await post(this.#url, limit ? { limit } : {});
      } catch (error) {
        tell(`The evaluation was refused: ${error.message}`);
      }
      this.#look();
    };
    return element(
      "div",
      { class: "buttons" },
      element("button", { type: "button", onclick: begin(SAMPLE) }, `Evaluate on ${SAMPLE} items a dataset`),
      element("button", { type: "button", onclick: begin(null) }, "Evaluate on all items"),
    );
  }
}

function isUnfinished({ state }) {
  return state === "queued" || state === "running";
}

function progress({ state, progress: said }) {
  return element(
    "div",
    { role: "status" },
    element("p", {}, state === "queued" ? "An evaluation waits for its turn." : `Evaluating: ${said?.message ?? "starting"}`),
    element("progress", { max: 1, value: said?.fraction ?? null, "aria-label": "Progress of the evaluation" }),
  );
}

function failure({ detail, reason }) {
  return element("p", { class: "error" }, `The newest evaluation failed: ${detail ?? words(reason)}`);
}

function older(job) {
  return element("details", {}, element("summary", {}, heading(job)), report(job));
}

function heading({ spec, ended_at }) {
  const items = spec.limit ? `at most ${integer(spec.limit)} items a dataset` : "every item";
  return [`Checkpoint of step ${integer(spec.step)}, ${items}, `, timeElement(ended_at)];
}

function report(job) {
  const { datasets, absent, overlap, warnings } = job.result;
  const rows = Object.entries(datasets).flatMap(([name, one]) =>
    Object.entries(one.figures).map(([figure, found]) => row(name, one, figure, found)),
  );
  const notes = [
    ...Object.entries(datasets).map(([name, one]) => note(name, [one.rows, ...one.remarks, ...missing(one.absent)])),
    ...Object.entries(absent).map(([name, why]) => note(name, [`not measured: ${why}`])),
    ...Object.entries(overlap ?? {})
      .filter(([, found]) => found.touched)
      .map(([name, found]) =>
        note(name, [`${integer(found.touched)} of ${integer(found.items)} items share 13 words in a row with the training text`]),
      ),
    ...warnings.map((sentence) => element("li", {}, sentence)),
  ];
  return element(
    "div",
    { class: "evaluation" },
    element("p", { class: "hint" }, heading(job)),
    element("div", { class: "wide" }, table("Figures of the evaluation", COLUMNS, rows)),
    element("details", {}, element("summary", {}, "What was measured, and what was not"), element("ul", {}, notes)),
  );
}

function row(name, one, figure, found) {
  const isHeadline = figure === one.figure;
  const isShare = found.low !== undefined;
  const value = isShare ? share(found.value) : number(found.value);
  const before = one.untrained?.[figure]?.value;
  return [
    name,
    words(figure),
    integer(found.n),
    isHeadline ? element("strong", {}, value) : value,
    isShare ? `${share(found.low)}–${share(found.high)}` : NOTHING,
    isHeadline || figure === "acc" ? share(one.chance) : NOTHING,
    isShare && before !== undefined ? share(before) : number(before),
    range(one.targets[figure]),
    range(one.forecasts[figure]),
    one.met[figure] === undefined ? "" : one.met[figure] ? "met" : "not met",
  ];
}

/** 0..1, to a tenth of a per cent. */
function share(value) {
  return value.toFixed(3);
}

function range(ends) {
  return ends ? ends.map(number).join("–") : NOTHING;
}

function missing(absent) {
  return Object.entries(absent).map(([figure, why]) => `no ${figure}: ${why}`);
}

function note(name, sentences) {
  return element("li", {}, element("strong", {}, name), ` ${sentences.join("; ")}`);
}
