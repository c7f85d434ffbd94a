// The end of what the worker printed, followed by byte offset while it prints.

import { get } from "./api.js";
import { setText } from "./dom.js";

const TAIL_BYTES = 32_768;
const EVERY_MS = 2000;
const KEPT_LINES = 1000;
const ANSI = /\u001b\[[0-9;?]*[A-Za-z]/g;

export class LogTail {
  #place;
  #id;
  #attempt = 0;
  #offset = null;
  #text = "";
  #isLive = false;
  #timer = null;
  #isClosed = false;

  constructor(place, id) {
    this.#place = place;
    this.#id = id;
    place.addEventListener("toggle", () => this.#look());
  }

  close() {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  /** Which attempt's log to show, and whether more may come. */
  follow(attempt, isLive) {
    const isNews = attempt !== this.#attempt || isLive !== this.#isLive;
    if (attempt !== this.#attempt) [this.#offset, this.#text] = [null, ""];
    this.#attempt = attempt;
    this.#isLive = isLive;
    if (isNews) this.#look();
  }

  async #look() {
    clearTimeout(this.#timer);
    if (this.#isClosed || !this.#place.open || !this.#attempt) return;
    const attempt = this.#attempt;
    if (!document.hidden) await this.#read(attempt).catch((error) => this.#say(error.message));
    if (this.#isLive && !this.#isClosed) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#look(), EVERY_MS);
    }
  }

  async #read(attempt) {
    const where = this.#offset === null ? { tail: TAIL_BYTES } : { after: this.#offset };
    const before = this.#offset;
    const block = await get(`/v1/runs/${this.#id}/logs`, { attempt, ...where });
    if (attempt !== this.#attempt || before !== this.#offset) return; // another look was faster
    this.#offset = block.next_offset;
    this.#text = lastLines(this.#text + block.text);
    this.#show();
    this.#say(this.#text ? "" : "The worker has printed nothing.");
  }

  #show() {
    const box = this.#place.querySelector("pre");
    const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
    setText(box, readable(this.#text));
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  #say(text) {
    setText(this.#place.querySelector(".log-note"), text);
  }
}

function lastLines(text) {
  return text.split("\n").slice(-KEPT_LINES).join("\n");
}

/** Without colour codes, and of a line that overwrote itself what was left in the end. */
function readable(text) {
  const lines = text.replace(ANSI, "").split("\n");
  return lines.map((line) => line.replace(/\r$/, "").split("\r").pop()).join("\n");
}
