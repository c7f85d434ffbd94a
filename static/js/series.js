// Metric rows by column, one row a step, in the order of the steps. Pure data: charts.js draws it.

// The columns that say where a row belongs; everything else in a batch is a metric.
const AXES = ["seq", "attempt", "step", "epoch", "at"];

export class Series {
  steps = [];
  epochs = [];
  #attempts = [];
  #columns = new Map();

  /**
   * Take in rows by column, as the service sends them; a row may come again, and changes nothing then.
   * A step that was trained again after a resume keeps the row of its latest attempt.
   */
  add(columns) {
    for (let row = 0; row < columns.step.length; row++) this.#place(columns, row);
  }

  clear() {
    this.steps.length = this.epochs.length = this.#attempts.length = 0;
    this.#columns.clear();
  }

  /** The values of a metric, one for each step: null where it was not measured or is not finite. */
  values(key) {
    return this.#columns.get(key)?.values ?? [];
  }

  /** Steps at which a metric was not finite, with what it was: [{step, value: "NaN" | "Infinity" | "-Infinity"}]. */
  nonfinite(key) {
    const found = this.#columns.get(key)?.nonfinite ?? new Map();
    return [...found].map(([step, value]) => ({ step, value })).sort((a, b) => a.step - b.step);
  }

  isMeasured(key) {
    const column = this.#columns.get(key);
    return column !== undefined && (column.nonfinite.size > 0 || column.values.some((value) => value !== null));
  }

  /** The newest measurement of a metric, finite or not: {step, value}, or null. */
  last(key) {
    const column = this.#columns.get(key);
    for (let place = this.steps.length - 1; column && place >= 0; place--) {
      const step = this.steps[place];
      const value = column.values[place] ?? column.nonfinite.get(step);
      if (value !== undefined) return { step, value };
    }
    return null;
  }

  #place(columns, row) {
    const step = columns.step[row];
    const place = this.#placeOf(step);
    if (this.steps[place] === step) {
      if (columns.attempt[row] < this.#attempts[place]) return;
    } else {
      for (const list of [this.steps, this.epochs, this.#attempts]) list.splice(place, 0, null);
      for (const { values } of this.#columns.values()) values.splice(place, 0, null);
    }
    this.steps[place] = step;
    this.epochs[place] = columns.epoch[row];
    this.#attempts[place] = columns.attempt[row];
    for (const { values, nonfinite } of this.#columns.values()) {
      values[place] = null;
      nonfinite.delete(step);
    }
    for (const key of Object.keys(columns)) {
      const value = AXES.includes(key) ? null : columns[key][row];
      if (value !== null) this.#set(key, place, step, value);
    }
  }

  #set(key, place, step, value) {
    let column = this.#columns.get(key);
    if (!column) {
      column = { values: this.steps.map(() => null), nonfinite: new Map() };
      this.#columns.set(key, column);
    }
    if (typeof value === "string") column.nonfinite.set(step, value);
    else column.values[place] = value;
  }

  /** Where `step` is, or where it would go; nearly always the end. */
  #placeOf(step) {
    let place = this.steps.length;
    while (place > 0 && this.steps[place - 1] >= step) place--;
    return place;
  }
}
