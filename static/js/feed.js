// What the feeds share: a stream to follow, what is loaded when it begins anew, and an end. Data only: views are told, and read.

import { Looker } from "./looker.js";
import { Stream } from "./stream.js";

export class Feed {
  #stream;
  #lookers = [];
  #isClosed = false;

  /**
   * path: of the stream; onStatus(status): as in stream.js
   * take(frame): something happened; load(): ask for everything; isLoaded(): whether there is something to show
   * again(): after a break: ask for what the stream tells once and does not repeat
   */
  constructor(path, { take, load, again = () => {}, isLoaded, onStatus }) {
    this.#stream = new Stream(path, {
      onFrame: take,
      onFresh: load,
      onStatus: (status) => {
        // What was is there to read even while nothing can be followed.
        if (status === "waiting" && !isLoaded()) load();
        if (status === "live" && isLoaded()) again();
        onStatus(status);
      },
    });
  }

  get isClosed() {
    return this.#isClosed;
  }

  open() {
    this.#stream.open();
  }

  close() {
    this.#isClosed = true;
    this.#stream.close();
    for (const looker of this.#lookers) looker.close();
  }

  hurry() {
    this.#stream.hurry();
  }

  /** A Looker that is closed with the feed. */
  looker(look) {
    this.#lookers.push(new Looker(look));
    return this.#lookers.at(-1);
  }
}
