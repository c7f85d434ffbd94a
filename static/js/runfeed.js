// One run with everything that belongs to it, kept up to date. Data only: a view is told what changed, and reads.

import { get, getAll } from "./api.js";
import { Looker } from "./looker.js";
import { Series } from "./series.js";
import { Stream } from "./stream.js";

export class RunFeed {
  run = null;
  attempts = [];
  checkpoints = [];
  series = new Series();
  #id;
  #onChange;
  #events = new Map();
  #history = new Looker(() => this.#loadHistory());
  #facts = new Looker(() => this.#loadFacts());
  #stream;
  #isLoaded = false;
  #isClosed = false;

  /** onChange(what): "run", "progress", "metrics", "events", "missing"; onStatus(status): as in stream.js. */
  constructor(id, onChange, onStatus) {
    this.#id = id;
    this.#onChange = (what) => this.#isClosed || onChange(what);
    this.#stream = new Stream(`/v1/runs/${id}/stream`, {
      onFrame: (frame) => this.#take(frame),
      onFresh: () => this.#startAnew(),
      onStatus: (status) => {
        // History is there to read even while nothing can be followed.
        if (status === "waiting" && !this.#isLoaded) this.#startAnew();
        if (status === "gone") this.#onChange("missing");
        onStatus(status);
      },
    });
  }

  open() {
    this.#stream.open();
  }

  close() {
    this.#isClosed = true;
    this.#stream.close();
    this.#history.close();
    this.#facts.close();
  }

  hurry() {
    this.#stream.hurry();
  }

  /** Events, oldest first. */
  get events() {
    return [...this.#events.values()].sort((a, b) => a.seq - b.seq);
  }

  /** A run as a command returned it: newer than any look that is under way. */
  adopt(run) {
    this.run = { ...this.run, ...run };
    this.#onChange("run");
    this.#facts.poke();
  }

  #startAnew() {
    this.series.clear();
    this.#events.clear();
    this.#history.poke(0);
    this.#facts.poke(0);
  }

  async #loadHistory() {
    const [metrics, events] = await Promise.all([get(this.#of("metrics")), getAll(this.#of("events"), { limit: 500 })]);
    this.series.add(metrics.columns);
    for (const event of events) this.#events.set(event.seq, event);
    this.#isLoaded = true;
    this.#onChange("metrics");
    this.#onChange("events");
  }

  async #loadFacts() {
    try {
      const [run, attempts, checkpoints] = await Promise.all([
        get(this.#of()),
        get(this.#of("attempts")),
        get(this.#of("checkpoints")),
      ]);
      Object.assign(this, { run, attempts: attempts.data, checkpoints: checkpoints.data });
      this.#onChange("run");
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#onChange("missing");
    }
  }

  #of(part = "") {
    return `/v1/runs/${this.#id}${part && `/${part}`}`;
  }

  #take(frame) {
    if (frame.type === "batch") {
      this.series.add(frame.columns);
      this.#onChange("metrics");
    } else if (frame.type === "event") {
      this.#events.set(frame.seq, frame);
      this.#facts.poke();
      this.#onChange("events");
    } else if (frame.type === "deleted") {
      this.#onChange("missing");
    } else if (frame.type === "progress" && this.run) {
      this.run.progress = frame.progress;
      this.#onChange("progress");
    }
  }
}
