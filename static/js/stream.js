// A websocket that comes back: after a break it asks for everything behind the last cursor it saw.

import { websocketProtocols } from "./api.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
const PATIENCE = 2.5; // heartbeats that may stay away before a silent connection counts as dead
const NOT_FOUND = 4404;

export class Stream {
  #path;
  #handlers;
  #socket = null;
  #cursor = null;
  #failures = 0;
  #retry = null;
  #watchdog = null;
  #heartbeat_ms = 15_000;
  #closed = false;

  /**
   * path: of the websocket
   * onFrame(frame): an event, a batch, progress, or a snapshot
   * onFresh(): nothing is known of what came before now; load it, frames from here on are complete
   * onStatus(status): "connecting", "live", "waiting" (disconnected, will try again) or "gone" (there is no such stream)
   */
  constructor(path, { onFrame, onFresh, onStatus }) {
    this.#path = path;
    this.#handlers = { onFrame, onFresh, onStatus };
  }

  open() {
    this.#connect();
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#retry);
    clearTimeout(this.#watchdog);
    if (this.#socket) hangUp(this.#socket);
  }

  /** Try at once instead of waiting for the next turn. */
  hurry() {
    if (this.#retry === null || this.#closed) return;
    clearTimeout(this.#retry);
    this.#connect();
  }

  async #connect() {
    this.#retry = null;
    this.#handlers.onStatus("connecting");
    let protocols;
    try {
      protocols = await websocketProtocols();
    } catch {
      this.#wait();
      return;
    }
    if (this.#closed) return;
    const socket = new WebSocket(this.#address(), protocols);
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#socket === socket && this.#take(JSON.parse(data)));
    socket.addEventListener("close", ({ code }) => this.#socket === socket && this.#lost(code));
    this.#watch();
  }

  #address() {
    const url = new URL(this.#path, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("after", this.#cursor ?? "now");
    return url;
  }

  #take(frame) {
    if (this.#closed) return;
    this.#watch();
    if (frame.type === "hello") this.#greet(frame);
    else if (frame.type === "gap") {
      this.#cursor = frame.to;
      this.#handlers.onFresh();
    } else {
      this.#cursor = frame.cursor ?? this.#cursor; // of an event, a batch, or a heartbeat
      this.#handlers.onFrame(frame);
    }
  }

  #greet({ cursor, heartbeat_s }) {
    this.#failures = 0;
    this.#heartbeat_ms = heartbeat_s * 1000;
    this.#watch();
    this.#handlers.onStatus("live");
    // With a cursor of our own, hello's lies ahead of what is about to be replayed.
    if (this.#cursor === null) {
      this.#cursor = cursor;
      this.#handlers.onFresh();
    }
  }

  #watch() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#abandon(), PATIENCE * this.#heartbeat_ms);
  }

  /** A dead connection may take minutes to notice that it is closed; do not wait for it. */
  #abandon() {
    this.#socket?.close();
    this.#lost(0);
  }

  #lost(code) {
    clearTimeout(this.#watchdog);
    this.#socket = null;
    if (this.#closed) return;
    if (code === NOT_FOUND) this.#handlers.onStatus("gone");
    else this.#wait();
  }

  #wait() {
    if (this.#closed) return;
    const wait = Math.min(FIRST_WAIT_MS * 2 ** this.#failures++, LONGEST_WAIT_MS);
    this.#handlers.onStatus("waiting");
    this.#retry = setTimeout(() => this.#connect(), wait * (0.75 + Math.random() / 2));
  }
}

/** One that is still being opened is closed once it is: browsers log it as an error when that is cut short. */
function hangUp(socket) {
  if (socket.readyState === WebSocket.CONNECTING) socket.addEventListener("open", () => socket.close());
  else socket.close();
}
