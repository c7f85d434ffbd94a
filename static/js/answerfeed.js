// One answer of the service, looked at again whenever something happens to a run. Data only: a view is told, and reads.

import { get } from "./api.js";
import { Looker } from "./looker.js";
import { Stream } from "./stream.js";

export class AnswerFeed {
  /** What the service says, or null before it has. */
  answer = null;
  #path;
  #query;
  #onChange;
  #onProgress;
  #looker = new Looker(() => this.#look());
  #stream;
  #isClosed = false;

  /** onChange(): `answer` is new; onProgress(id, progress): of any run; onStatus(status): as in stream.js. */
  constructor(path, query, { onChange, onProgress = () => {}, onStatus }) {
    this.#path = path;
    this.#query = query;
    this.#onChange = onChange;
    this.#onProgress = onProgress;
    this.#stream = new Stream("/v1/stream", {
      onFrame: (frame) => this.#take(frame),
      onFresh: () => this.#looker.poke(0),
      onStatus: (status) => {
        if (status === "waiting" && this.answer === null) this.#looker.poke(0);
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
    this.#looker.close();
  }

  hurry() {
    this.#stream.hurry();
  }

  /** What was changed here: look at once. */
  poke() {
    this.#looker.poke(0);
  }

  async #look() {
    const answer = await get(this.#path, this.#query);
    if (this.#isClosed) return;
    this.answer = answer;
    this.#onChange();
  }

  #take(frame) {
    if (frame.type === "event" || frame.type === "deleted") this.#looker.poke();
    else if (frame.type === "progress") this.#onProgress(frame.run_id, frame.progress);
  }
}
