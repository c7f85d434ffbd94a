// What the model wrote after held-out prompts: at the newest step, or at an earlier one that is chosen.

import { element, refill } from "./dom.js";
import { integer, number } from "./format.js";

export class Samples {
  #section;
  #choice;
  #texts;
  #events = [];
  #chosen = null;

  constructor(section) {
    this.#section = section;
    this.#choice = section.querySelector("select");
    this.#texts = section.querySelector(".texts");
    this.#choice.addEventListener("change", () => {
      this.#chosen = this.#choice.selectedIndex > 0 ? Number(this.#choice.value) : null;
      this.#show();
    });
  }

  /** The newest step is shown as it comes, unless an earlier one was chosen. */
  follow(events) {
    this.#events = events.filter(({ kind }) => kind === "sample");
    this.#section.hidden = this.#events.length === 0;
    const there = steps(this.#events);
    refill(this.#choice, there, () => there.map(option));
    this.#choice.selectedIndex = Math.max(
      0,
      there.findIndex(([step]) => step === this.#chosen),
    );
    this.#show();
  }

  #show() {
    const shown = latest(this.#events.filter(({ step }) => step === Number(this.#choice.value)));
    refill(
      this.#texts,
      shown.map(({ seq }) => seq),
      () => shown.map(sample),
    );
  }
}

/** [step, epoch] of each, that of the newest sample first, which after a resume may not be the highest. */
function steps(samples) {
  return [...new Map(samples.toReversed().map(({ step, data }) => [step, data.epoch]))];
}

function option([step, epoch]) {
  return element("option", { value: step }, `${integer(step)} (epoch ${number(epoch)})`);
}

/** In their places: a later attempt's takes that of an earlier one's. */
function latest(samples) {
  return [...new Map(samples.map((event) => [event.data.place, event])).values()];
}

function sample({ data }) {
  return element(
    "article",
    { class: "card" },
    element("h3", {}, data.dataset),
    element("dl", {}, part("Prompt", data.prompt), part("It wrote", data.text), part("Expected", data.expected)),
  );
}

/** Without the spaces and the ends of lines around it. */
function part(title, text) {
  return element("div", {}, element("dt", {}, title), element("dd", {}, text.trim() || element("em", {}, "nothing")));
}
