// One answer of the service, looked at again whenever something happens to a run or the queue.

import { get } from "./api.js";
import { Feed } from "./feed.js";

const TELLING = new Set(["event", "deleted", "queue"]);

export class AnswerFeed extends Feed {
  /** What the service says, or null before it has. */
  answer = null;
  #path;
  #query;
  #onChange;
  #onProgress;
  #looker = this.looker(() => this.#look());

  /** onChange(): `answer` is new; onProgress(id, progress): of any run; onStatus(status): as in stream.js. */
  constructor(path, query, { onChange, onProgress = () => {}, onStatus }) {
    super("/v1/stream", {
      take: (frame) => this.#take(frame),
      load: () => this.poke(),
      again: () => this.poke(),
      isLoaded: () => this.answer !== null,
      onStatus,
    });
    this.#path = path;
    this.#query = query;
    this.#onChange = onChange;
    this.#onProgress = onProgress;
  }

  /** What was changed here: look at once. */
  poke() {
    this.#looker.poke(0);
  }

  async #look() {
    const answer = await get(this.#path, this.#query);
    if (this.isClosed) return;
    this.answer = answer;
    this.#onChange();
  }

  #take(frame) {
    if (TELLING.has(frame.type)) this.#looker.poke();
    else if (frame.type === "progress") this.#onProgress(frame.run_id, frame.progress);
  }
}
