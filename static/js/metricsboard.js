// The charts of a run: the headline that index.html names, then every other metric by the group the service gives it.

import { metrics } from "./catalog.js";
import { element, refill, setText, unitElement } from "./dom.js";
import { integer, number } from "./format.js";

const REDRAW_MS = 250; // rows may come far faster than anybody reads
const SMALL_PX = 120;
const HEADLINE_PX = 260;

export class MetricsBoard {
  #view;
  #groups;
  #headline = null;
  #charts = new Map();
  #metrics = [];
  #total = 0;
  #series = null;
  #pending = null;
  #expected = "[]";
  #ready;
  #Chart;

  constructor(view) {
    this.#view = view;
    this.#groups = view.querySelector(".groups");
    view
      .querySelector("#epochs")
      .addEventListener("change", ({ target }) => this.#setOptions({ isEpochs: target.checked }));
    view
      .querySelector("#log-scale")
      .addEventListener("change", ({ target }) => this.#headline?.setOptions({ isLog: target.checked }));
    this.#ready = this.#prepare();
  }

  close() {
    clearTimeout(this.#pending);
    this.#headline?.destroy();
    for (const chart of this.#charts.values()) chart.destroy();
  }

  update(series) {
    this.#series = series;
    this.#pending ??= setTimeout(() => this.#ready.then(() => this.#draw()), REDRAW_MS);
  }

  /** Between which losses the run is expected to be: [{epoch, step, low, high}], drawn behind the headline. */
  expect(expected) {
    const text = JSON.stringify(expected);
    if (text === this.#expected) return;
    this.#expected = text;
    this.#view.querySelector(".expected").hidden = expected.length === 0;
    this.#ready.then(() => this.#headline.setOptions({ band: expected }));
  }

  async #prepare() {
    this.#metrics = await metrics();
    this.#total = this.#metrics.length;
    const place = this.#view.querySelector(".headline");
    try {
      ({ Chart: this.#Chart } = await import("./charts.js"));
    } catch (error) {
      place.replaceChildren(
        element(
          "p",
          { class: "bad" },
          `Charts cannot be drawn: ${error.message}. Is the chart library installed (tools/vendor.sh)?`,
        ),
      );
      throw error;
    }
    const keys = place.dataset.metrics.split(" ");
    this.#headline = new this.#Chart(
      this.#metrics.filter(({ key }) => keys.includes(key)),
      { height: HEADLINE_PX },
    );
    place.replaceChildren(this.#headline.element);
    this.#metrics = this.#metrics.filter(({ key }) => !keys.includes(key));
    for (const group of new Set(this.#metrics.map(({ group }) => group))) this.#groups.append(groupElement(group));
  }

  #draw() {
    this.#pending = null;
    this.#headline.update(this.#series);
    for (const section of this.#groups.children) this.#drawGroup(section);
    this.#listUnmeasured();
  }

  #drawGroup(section) {
    const members = this.#metrics.filter(({ group }) => group === section.dataset.group);
    const measured = members.filter(({ key }) => this.#series.isMeasured(key));
    for (const metric of measured.filter(({ cadence }) => cadence !== "final"))
      this.#chartOf(metric, section).update(this.#series);
    const single = measured
      .filter(({ cadence }) => cadence === "final")
      .map((metric) => [metric, this.#series.last(metric.key)]);
    refill(
      section.querySelector(".singles"),
      single.map(([, last]) => last),
      () => single.map(([metric, last]) => singleElement(metric, last)),
    );
    section.hidden = measured.length === 0;
  }

  #listUnmeasured() {
    const place = this.#view.querySelector(".unmeasured");
    const missing = this.#metrics.filter(({ key }) => !this.#series.isMeasured(key));
    place.hidden = missing.length === 0;
    setText(place.querySelector("summary"), `${missing.length} of ${this.#total} metrics have not been measured`);
    refill(
      place.querySelector("ul"),
      missing.map(({ key }) => key),
      () =>
        missing.map(({ label, meaning }) =>
          element("li", {}, label, element("span", { class: "hint" }, ` ${meaning}`)),
        ),
    );
  }

  #chartOf(metric, section) {
    let chart = this.#charts.get(metric.key);
    if (!chart) {
      chart = new this.#Chart([metric], { height: SMALL_PX, isEpochs: this.#view.querySelector("#epochs").checked });
      this.#charts.set(metric.key, chart);
      section.querySelector(".charts").append(chart.element);
    }
    return chart;
  }

  #setOptions(options) {
    for (const chart of [this.#headline, ...this.#charts.values()]) chart?.setOptions(options);
  }
}

function groupElement(group) {
  return element(
    "section",
    { "data-group": group },
    element("h3", {}, group),
    element("div", { class: "charts" }),
    element("dl", { class: "singles" }),
  );
}

function singleElement({ label, unit, meaning }, { step, value }) {
  return element(
    "div",
    { title: meaning },
    element("dt", {}, label),
    element(
      "dd",
      {},
      number(value),
      " ",
      unitElement(unit),
      element("span", { class: "hint" }, ` at step ${integer(step)}`),
    ),
  );
}
