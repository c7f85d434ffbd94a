// One run with everything that belongs to it, kept up to date.

import { get, getAll } from "./api.js";
import { Feed } from "./feed.js";
import { Series } from "./series.js";

export class RunFeed extends Feed {
  run = null;
  attempts = [];
  checkpoints = [];
  series = new Series();
  #id;
  #onChange;
  #events = new Map();
  #history = this.looker(() => this.#loadHistory());
  #facts = this.looker(() => this.#loadFacts());
  #isLoaded = false;

  /** onChange(what): "run", "progress", "metrics", "events", "missing"; onStatus(status): as in stream.js. */
  constructor(id, onChange, onStatus) {
    super(`/v1/runs/${id}/stream`, {
      take: (frame) => this.#take(frame),
      load: () => this.#startAnew(),
      isLoaded: () => this.#isLoaded,
      onStatus: (status) => {
        if (status === "gone") this.#onChange("missing");
        onStatus(status);
      },
    });
    this.#id = id;
    this.#onChange = (what) => this.isClosed || onChange(what);
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
