// What was measured on held-out items: the newest evaluation as a table, older ones behind it, and a button for another.

import { get, post } from "./api.js";
import { attempt } from "./dialogs.js";
import { element, refill, table, timeElement } from "./dom.js";
import { integer, NOTHING, number, words } from "./format.js";
import { Once } from "./once.js";

const EVERY_MS = 2000;
const SAMPLE = 100;
const COLUMNS = ["Dataset", "Figure", "Items", "Value", "95 %", "Chance", "Untrained", "Target", "Forecast", ""];

export class Evaluations {
  #now = element("div");
  #made = element("div");
  #next = element("div");
  #once = new Once();
  #url;
  #seen = null;
  #timer = null;
  #isClosed = false;
  #canBegin = false;

  constructor(place, id) {
    place.replaceChildren(this.#now, this.#made, this.#next);
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
    // Without an answer it is tried again; the stream says that the service is away.
    const jobs = await get(this.#url, { limit: 10 }).then(({ data }) => data, () => null);
    if (this.#isClosed) return;
    if (jobs) this.#show(jobs);
    if (!jobs || jobs.some(isUnfinished)) this.#timer = setTimeout(() => this.#look(), jobs ? EVERY_MS : 5 * EVERY_MS);
  }

  /** In three places, so that what is read is not made anew while something goes on. */
  #show(jobs) {
    const underway = jobs.filter(isUnfinished);
    const failed = jobs.slice(0, 1).filter(({ state }) => state === "failed");
    const [newest, ...others] = jobs.filter(({ state }) => state === "completed");
    refill(this.#now, [underway, failed], () => [...underway.map((job) => this.#progress(job)), ...failed.map(failure)]);
    refill(this.#made, [newest, others, jobs.length === 0], () => [
      newest && report(newest),
      ...others.map(older),
      jobs.length === 0 && element("p", { class: "hint" }, "None yet."),
    ]);
    refill(this.#next, [this.#canBegin, underway.length], () => [this.#canBegin && underway.length === 0 && this.#buttons()]);
  }

  #progress({ id, state, progress }) {
    return element(
      "div",
      { role: "status" },
      element("p", {}, state === "queued" ? "An evaluation waits for its turn." : `Evaluating: ${progress?.message ?? "starting"}`),
      element("progress", { max: 1, value: progress?.fraction ?? null, "aria-label": "Progress of the evaluation" }),
      element("button", { type: "button", onclick: () => this.#ask(`/v1/jobs/${id}/cancel`) }, "Cancel the evaluation"),
    );
  }

  async #ask(url, body = {}) {
    await attempt("The request", async () => {
      await post(url, body, this.#once.keyOf({ url, body }));
      this.#once.done();
    });
    this.#look();
  }

  #buttons() {
    const begin = (limit) => () => this.#ask(this.#url, limit ? { limit } : {});
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
    ...Object.entries(overlap ?? {}).flatMap(shared),
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

/** What a dataset's items share with the training text; nothing where they share nothing. */
function shared([name, found]) {
  if (typeof found === "string") return [note("overlap", [`${words(name)}: ${found}`])];
  if (!found.touched) return [];
  const without = found.score_without === null ? "" : `; the score without them is ${share(found.score_without)}`;
  const touched = `${integer(found.touched)} of ${integer(found.items)} items share 13 words in a row, or all they have, with the training text`;
  return [note(name, [touched + without])];
}

function row(name, one, figure, found) {
  const isHeadline = figure === one.figure;
  const shown = found.high <= 1 ? share : number;
  const value = shown(found.value);
  const before = one.untrained?.[figure]?.value;
  return [
    name,
    words(figure),
    integer(found.n),
    isHeadline ? element("strong", {}, value) : value,
    found.low === undefined ? NOTHING : `${shown(found.low)}–${shown(found.high)}`,
    isHeadline || figure === "acc" ? share(one.chance) : NOTHING,
    before === undefined ? NOTHING : shown(before),
    range(one.targets[figure]),
    range(one.forecasts[figure]),
    { true: "met", false: "not met", null: "undecided" }[one.met[figure]] ?? "",
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
