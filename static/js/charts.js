// Lines over steps, drawn by uPlot. What is not finite is marked where it happened; what was not measured is a gap.

import uPlot from "../vendor/uPlot.esm.js";
import { element, setText, unitElement } from "./dom.js";
import { integer, number } from "./format.js";

const LABEL_GAP_PX = 8;
const darkness = matchMedia("(prefers-color-scheme: dark)");

export class Chart {
  element;
  #metrics;
  #options;
  #plot = null;
  #canvas = element("div", { class: "canvas", role: "img" });
  #note = element("p", { class: "nonfinite" });
  #readings = [];
  #series = null;
  #marks = [];
  #isZoomed = false;
  #isInView = false;
  #isStale = false;
  #inView = new IntersectionObserver(([entry]) => this.#enter(entry.isIntersecting));
  #resize = new ResizeObserver(() => this.#fit());
  #recolour = () => this.#rebuild();

  /**
   * metrics: as GET /v1/metrics gives them, drawn on one scale
   * options: height in pixels; isEpochs: epochs instead of steps along x; isLog: logarithmic y;
   * band: [{epoch, step, low, high}], filled from point to point behind the lines
   */
  constructor(metrics, options) {
    this.#metrics = metrics;
    this.#options = options;
    this.#canvas.style.height = `${options.height}px`; // taken up before anything is drawn
    this.element = element("figure", { class: "chart" }, this.#legend(), this.#canvas, this.#note);
    this.#inView.observe(this.element);
    this.#resize.observe(this.#canvas);
    darkness.addEventListener("change", this.#recolour);
  }

  destroy() {
    this.#inView.disconnect();
    this.#resize.disconnect();
    darkness.removeEventListener("change", this.#recolour);
    this.#plot?.destroy();
    this.element.remove();
  }

  /** Show what `series` holds now; a chart that is out of view draws when it comes into view. */
  update(series) {
    this.#series = series;
    this.#isStale = true;
    if (this.#isInView) this.#draw();
  }

  setOptions(options) {
    this.#options = { ...this.#options, ...options };
    this.#rebuild();
  }

  #enter(isInView) {
    this.#isInView = isInView;
    if (isInView && this.#isStale) this.#draw();
  }

  #draw() {
    if (!this.#series || !this.#canvas.clientWidth) return;
    this.#isStale = false;
    this.#marks = this.#metrics.flatMap(({ key }) => this.#series.nonfinite(key));
    const data = this.#data();
    if (!this.#plot) this.#plot = new uPlot(this.#plotOptions(), data, this.#canvas);
    else {
      this.#plot.setData(data, !this.#isZoomed);
      if (this.#isZoomed) this.#plot.redraw();
    }
    this.#read(this.#plot.cursor.idx);
    setText(this.#note, this.#nonfiniteInWords());
    this.#canvas.setAttribute("aria-label", this.#inWords());
  }

  #data() {
    const { steps, epochs } = this.#series;
    const columns = this.#metrics.map(({ key }) => {
      const values = this.#series.values(key);
      return steps.map((_, place) => this.#drawable(values[place] ?? null));
    });
    return [(this.#options.isEpochs ? epochs : steps).slice(), ...columns];
  }

  /** A logarithmic scale has no place for 0 and below. */
  #drawable(value) {
    return this.#options.isLog && value <= 0 ? null : value;
  }

  #rebuild() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#isZoomed = false;
    this.#colourLegend();
    this.#isStale = true;
    if (this.#isInView) this.#draw();
  }

  #fit() {
    const width = this.#canvas.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) this.#plot.setSize({ width, height: this.#options.height });
    else if (!this.#plot && this.#isInView) this.#draw();
  }

  // --- how it looks -----------------------------------------------------------------------------------------

  #plotOptions() {
    const axis = {
      stroke: colour("--muted"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    return {
      width: this.#canvas.clientWidth,
      height: this.#options.height,
      legend: { show: false },
      cursor: { sync: { key: "run" }, y: false, drag: { x: true, y: false }, points: { size: 6 } },
      scales: { x: { time: false }, y: { distr: this.#options.isLog ? 3 : 1 } },
      axes: [
        { ...axis, size: 24, space: 60, values: (_, ticks) => ticks.map(number) },
        {
          ...axis,
          size: 52,
          space: 22,
          values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : number(tick))),
        },
      ],
      series: [{}, ...this.#metrics.map((metric, place) => this.#line(metric, place))],
      hooks: {
        drawAxes: [(plot) => this.#drawBand(plot)],
        draw: [(plot) => this.#drawMarks(plot)],
        setCursor: [(plot) => this.#read(plot.cursor.idx)],
        setSelect: [({ select }) => (this.#isZoomed ||= select.width > 0)],
        ready: [(plot) => plot.over.addEventListener("dblclick", () => (this.#isZoomed = false))],
      },
    };
  }

  #line({ label, cadence }, place) {
    const stroke = lineColour(place);
    // Measured at every logged step, a missing value is a gap; measured now and then, the points belong together.
    return {
      label,
      stroke,
      width: 1.5,
      spanGaps: cadence !== "step",
      points: cadence === "step" ? {} : { show: true, size: 5, fill: stroke },
    };
  }

  /** It takes no part in the scales: what lies outside of them is cut off. */
  #drawBand(plot) {
    const { band = [], isEpochs } = this.#options;
    if (band.length < 2) return;
    const { ctx, bbox } = plot;
    const corner = (point, side) => [
      plot.valToPos(isEpochs ? point.epoch : point.step, "x", true),
      plot.valToPos(point[side], "y", true),
    ];
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.beginPath();
    for (const point of band) ctx.lineTo(...corner(point, "high"));
    for (const point of band.toReversed()) ctx.lineTo(...corner(point, "low"));
    ctx.fillStyle = colour("--band");
    ctx.fill();
    ctx.restore();
  }

  /** A dashed line at each step that was not finite, with its name where there is room. */
  #drawMarks(plot) {
    const { ctx, bbox } = plot;
    const scale = devicePixelRatio;
    const seen = this.#marks.map(({ step, value }) => ({ value, x: plot.valToPos(this.#place(step), "x", true) }));
    const inside = seen.filter(({ x }) => x >= bbox.left && x <= bbox.left + bbox.width);
    ctx.save();
    ctx.strokeStyle = colour("--bad");
    ctx.lineWidth = scale;
    ctx.setLineDash([3 * scale, 3 * scale]);
    ctx.textAlign = "left";
    ctx.textBaseline = "top";
    ctx.font = `${11 * scale}px system-ui, sans-serif`;
    for (const { x } of inside) {
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    let free = bbox.left;
    for (const { x, value } of inside) {
      if (x < free) continue;
      const width = ctx.measureText(value).width;
      const left = Math.min(x + 2 * scale, bbox.left + bbox.width - width);
      ctx.fillStyle = colour("--card");
      ctx.fillRect(left, bbox.top, width + 2 * scale, 13 * scale);
      ctx.fillStyle = colour("--bad");
      ctx.fillText(value, left + scale, bbox.top + scale);
      free = left + width + LABEL_GAP_PX * scale;
    }
    ctx.restore();
  }

  #place(step) {
    return this.#options.isEpochs ? this.#series.epochs[this.#series.steps.indexOf(step)] : step;
  }

  // --- what it says -----------------------------------------------------------------------------------------

  #legend() {
    const entries = this.#metrics.map(({ label, unit, meaning }) => {
      const swatch = element("span", { class: "swatch" });
      const reading = element("output", {});
      this.#readings.push({ swatch, reading });
      return element(
        "div",
        { class: "entry", title: meaning },
        swatch,
        element("span", {}, label),
        reading,
        unitElement(unit),
      );
    });
    this.#colourLegend();
    const meaning = this.#metrics.length === 1 && element("p", { class: "hint" }, this.#metrics[0].meaning);
    return element("figcaption", {}, entries, meaning);
  }

  #colourLegend() {
    this.#readings.forEach(({ swatch }, place) => (swatch.style.background = lineColour(place)));
  }

  /** Values at the cursor, or the newest ones. */
  #read(place) {
    const isAway = place === null || place === undefined;
    this.#metrics.forEach(({ key }, index) => {
      const step = isAway ? null : this.#series.steps[place];
      const here = isAway
        ? this.#series.last(key)?.value
        : (this.#series.values(key)[place] ?? this.#nonfiniteAt(key, step));
      setText(this.#readings[index].reading, number(here) + (isAway ? "" : ` at ${integer(step)}`));
    });
  }

  #nonfiniteAt(key, step) {
    return this.#series.nonfinite(key).find((found) => found.step === step)?.value ?? null;
  }

  #nonfiniteInWords() {
    const said = this.#metrics.map(({ key, label }) => {
      const found = this.#series.nonfinite(key);
      if (!found.length) return null;
      const shown = found.slice(0, 3).map(({ step, value }) => `${value} at step ${integer(step)}`);
      const more =
        found.length > 3 ? ` and at ${integer(found.length - 3)} more, the last ${integer(found.at(-1).step)}` : "";
      return `${label}: ${shown.join(", ")}${more}`;
    });
    return said.filter(Boolean).join(". ");
  }

  #inWords() {
    const said = this.#metrics.map(({ key, label }) => {
      const last = this.#series.last(key);
      return last ? `${label} ${number(last.value)} at step ${integer(last.step)}` : `${label} not measured yet`;
    });
    return `Chart. ${said.join("; ")}`;
  }
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function lineColour(place) {
  return colour(`--line-${(place % 4) + 1}`);
}
