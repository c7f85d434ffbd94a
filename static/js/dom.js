// Making and replacing elements. Text always goes in as text nodes, never as markup.

import { instant, integer, time } from "./format.js";

/** element("p", { class: "hint", onclick: f }, "text", child): null, undefined and false stand for nothing. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** A copy of a <template> of index.html: its first element. */
export function template(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

/** Set text only where it changes, so that assistive technology and selections are left in peace. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Replace the children of `target` unless `version` (what they were made from) is the one it shows. */
export function refill(target, version, make) {
  const key = JSON.stringify(version);
  if (target.dataset.version === key) return;
  target.dataset.version = key;
  target.replaceChildren(...[make()].flat().filter(Boolean));
}

/** An instant, with the exact one for machines and on hover. */
export function timeElement(at) {
  const exact = instant(at).toISOString();
  return element("time", { datetime: exact, title: exact }, time(at));
}

/** A unit in small; "1" says that there is none. */
export function unitElement(unit) {
  return unit === "1" ? null : element("span", { class: "unit" }, unit);
}

/** rows: lists of cells, each text, an element or a whole number. `labels` name the columns, and the cells on narrow screens. */
export function table(caption, labels, rows) {
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      labels.map((label, place) => element("th", { scope: "col", class: numeric(rows[0]?.[place]) }, label)),
    ),
  );
  const body = rows.map((cells) =>
    element(
      "tr",
      {},
      cells.map((cell, place) =>
        element(
          "td",
          { "data-label": labels[place], class: numeric(cell) },
          typeof cell === "number" ? integer(cell) : cell,
        ),
      ),
    ),
  );
  return element("table", {}, element("caption", { class: "unseen" }, caption), head, element("tbody", {}, body));
}

function numeric(cell) {
  return typeof cell === "number" ? "number" : null;
}
