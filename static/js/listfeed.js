// All runs, newest first, kept up to date.

import { get } from "./api.js";
import { Feed } from "./feed.js";

const PAGE = 50;

export class ListFeed extends Feed {
  hasMore = false;
  #runs = new Map();
  #stale = new Set();
  #onChange;
  #first = this.looker(() => this.#loadFirst());
  #single = this.looker(() => this.#loadStale());
  #isLoaded = false;
  #isFresh = false; // nothing was missed since the first page came

  /** onChange(): something in `runs` is new; onStatus(status): as in stream.js. */
  constructor(onChange, onStatus) {
    super("/v1/stream", {
      take: (frame) => this.#take(frame),
      load: () => this.#startAnew(),
      again: () => {
        this.#isFresh = false;
        this.#first.poke(0);
      },
      isLoaded: () => this.#isLoaded,
      onStatus,
    });
    this.#onChange = () => this.isClosed || onChange();
  }

  /** Runs, newest first (ids sort by time), or null before anything is known. */
  get runs() {
    return this.#isLoaded ? [...this.#runs.values()].sort((a, b) => (a.id < b.id ? 1 : -1)) : null;
  }

  async loadOlder() {
    const oldest = this.runs.at(-1);
    const page = await get("/v1/runs", { limit: PAGE, after: oldest.id });
    this.#keep(page.data, page.has_more);
  }

  #startAnew() {
    this.#runs.clear();
    this.#first.poke(0);
  }

  async #loadFirst() {
    const page = await get("/v1/runs", { limit: PAGE });
    const oldest = page.has_more ? page.data.at(-1).id : "";
    const listed = new Set(page.data.map(({ id }) => id));
    // What the page lacks in its range was deleted: the stream tells of that once, and not to who is cut off. After a break older
    // pages may have lost runs, too; they are loaded again by who wants them.
    for (const id of this.#runs.keys()) if ((id >= oldest || !this.#isFresh) && !listed.has(id)) this.#runs.delete(id);
    this.#isFresh = true;
    const isLonger = [...this.#runs.keys()].some((id) => id < oldest); // older pages were loaded; where they end is what counts
    this.#isLoaded = true;
    this.#keep(page.data, isLonger ? this.hasMore : page.has_more);
  }

  async #loadStale() {
    for (const id of [...this.#stale]) {
      this.#stale.delete(id); // first: what happens to it from here on asks for another look
      try {
        this.#runs.set(id, await get(`/v1/runs/${id}`));
      } catch (error) {
        if (error.status !== 404) {
          this.#stale.add(id);
          throw error;
        }
        this.#runs.delete(id); // deleted meanwhile
      }
    }
    this.#onChange();
  }

  #keep(runs, hasMore) {
    for (const run of runs) this.#runs.set(run.id, run);
    this.hasMore = hasMore;
    this.#onChange();
  }

  #take(frame) {
    if (frame.type === "event") this.#lookAgain(frame);
    if (frame.type === "deleted") {
      this.#runs.delete(frame.run_id);
      this.#stale.delete(frame.run_id);
      this.#first.poke(); // an answer that is under way may still have it
      this.#onChange();
      return;
    }
    const run = this.#runs.get(frame.run_id);
    if (run && frame.type === "progress") run.progress = frame.progress;
    else if (run && frame.type === "batch") run.metrics = { ...run.metrics, ...newest(frame.columns) };
    else return;
    this.#onChange();
  }

  #lookAgain({ kind, run_id: id }) {
    // A change of state may move every run in the queue; anything else concerns one run only.
    if (kind === "state") this.#first.poke();
    if (kind !== "state" || this.#runs.size > PAGE) {
      this.#stale.add(id);
      this.#single.poke();
    }
  }
}

/** The newest value of each column that has one. */
function newest(columns) {
  const last = Object.entries(columns).map(([key, column]) => [key, column.findLast((value) => value !== null)]);
  return Object.fromEntries(last.filter(([, value]) => value !== undefined));
}
