// Looking at the service again when something changed, without asking for every single change.

import { isPassing } from "./api.js";

const SETTLE_MS = 150; // several events of one cause are answered by one look
const RETRY_MS = 2000;

/** Calls `look` soon after being poked, one at a time, and once more if poked meanwhile; tries again while the service cannot answer. */
export class Looker {
  #look;
  #timer = null;
  #busy = false;
  #again = false;
  #closed = false;

  constructor(look) {
    this.#look = look;
  }

  poke(wait = SETTLE_MS) {
    if (this.#closed) return;
    if (this.#busy) this.#again = true;
    else this.#timer ??= setTimeout(() => this.#run(), wait);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  async #run() {
    this.#timer = null;
    this.#busy = true;
    const isDone = await this.#look().then(() => true, isAnswered);
    this.#busy = false;
    if (!isDone) this.poke(RETRY_MS);
    else if (this.#again) this.poke();
    this.#again = false;
  }
}

function isAnswered(error) {
  if (isPassing(error)) return false;
  reportError(error); // ours, not the network's: it belongs on the console
  return true;
}
