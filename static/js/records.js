// What a run left on record: plan, alerts, warnings, events, checkpoints, attempts.

import { element, refill, table, timeElement } from "./dom.js";
import { bytes, digest, integer, number, plain, words } from "./format.js";

const EVENTS_SHOWN = 200;

/** The newest plan; its lists of records become tables, whatever they are about. */
export function showPlan(place, events) {
  const plan = events.findLast(({ kind }) => kind === "plan");
  refill(place, plan?.seq ?? null, () =>
    plan ? structure(plan.data) : element("p", { class: "hint" }, "The worker has not made its plan yet."),
  );
}

/** What ails the run now, worst first: since when, on what evidence, and what to do about it. */
export function showAlerts(place, alerts) {
  place.hidden = alerts.length === 0;
  place.classList.toggle(
    "critical",
    alerts.some(({ severity }) => severity === "critical"),
  );
  refill(place, alerts, () => [
    element("h2", {}, alerts.length === 1 ? "One alert" : `${alerts.length} alerts`),
    ...alerts.toSorted((a, b) => a.severity.localeCompare(b.severity)).map(alertElement),
  ]);
}

function alertElement({ kind, severity, message, evidence, remedy, since_step, at }) {
  const since = since_step === null ? "" : ` at step ${integer(since_step)}`;
  const facts = Object.entries(evidence)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) =>
      element("div", {}, element("dt", {}, words(name)), element("dd", {}, typeof value === "number" ? number(value) : value)),
    );
  return element(
    "section",
    { class: "alert", "data-alert": kind, "data-severity": severity },
    element("h3", {}, words(kind)),
    element("p", {}, message, element("span", { class: "hint" }, ` ${severity}, since `, timeElement(at), since)),
    element("dl", { class: "evidence" }, facts),
    element("p", { class: "remedy" }, element("strong", {}, "What to do: "), remedy),
  );
}

export function showWarnings(place, events) {
  const warnings = events.filter(({ kind }) => kind === "warning" || kind === "mirror_failed");
  place.hidden = warnings.length === 0;
  refill(
    place,
    warnings.map(({ seq }) => seq),
    () => [
      element("h2", {}, warnings.length === 1 ? "One warning" : `${warnings.length} warnings`),
      element(
        "ul",
        {},
        warnings.map((event) => element("li", {}, timeElement(event.at), " ", sentence(event))),
      ),
    ],
  );
}

export function showEvents(place, events) {
  const newest = events.slice(-EVENTS_SHOWN).reverse();
  refill(place, [newest[0]?.seq, newest.length], () => {
    const rows = newest.map((event) => [
      timeElement(event.at),
      words(event.kind),
      event.step === null ? "" : integer(event.step),
      sentence(event),
    ]);
    const rest = events.length - newest.length;
    return [
      table("Events, newest first", ["Time", "What", "Step", "Details"], rows),
      rest > 0 && element("p", { class: "hint" }, `and ${integer(rest)} older ones`),
    ];
  });
}

/** pin(checkpoint): change whether it is kept as long as its run. */
export function showCheckpoints(place, checkpoints, pin) {
  refill(
    place,
    checkpoints.map(({ id, removed_at, is_pinned }) => [id, removed_at, is_pinned]),
    () => {
      if (!checkpoints.length) return element("p", { class: "hint" }, "None yet.");
      const rows = [...checkpoints]
        .reverse()
        .map((found) => [
          integer(found.step),
          bytes(found.bytes),
          timeElement(found.created_at),
          found.removed_at === null
            ? kept(found, pin)
            : element("span", { class: "hint" }, "removed ", timeElement(found.removed_at)),
          files(found.files),
        ]);
      return table("Checkpoints, newest first", ["Step", "Size", "Saved", "State", "Files and their SHA-256"], rows);
    },
  );
}

function kept(checkpoint, pin) {
  const { step, is_pinned } = checkpoint;
  const [state, label, consequence] = is_pinned
    ? ["pinned", "Unpin", "Newer checkpoints may take its place."]
    : ["kept", "Pin", "Keep it as long as the run, whatever is saved after it."];
  const press = { type: "button", title: consequence, "aria-label": `${label} the checkpoint of step ${integer(step)}` };
  return element("span", {}, `${state} `, element("button", { ...press, onclick: () => pin(checkpoint) }, label));
}

export function showAttempts(place, attempts) {
  refill(place, attempts, () => {
    if (!attempts.length) return element("p", { class: "hint" }, "The run has not been launched yet.");
    const rows = attempts.map((attempt) => [
      integer(attempt.number),
      attempt.device,
      timeElement(attempt.launched_at),
      attempt.resumed_from_step === null ? "the beginning" : `step ${integer(attempt.resumed_from_step)}`,
      attempt.ended_at === null ? "" : timeElement(attempt.ended_at),
      ending(attempt),
    ]);
    return table("Process lives of this run", ["Attempt", "Device", "Launched", "From", "Ended", "How"], rows);
  });
}

function ending({ ended_at, ending: said, exit_code, exit_signal }) {
  if (ended_at === null) return "alive";
  const exit =
    exit_signal !== null ? `signal ${exit_signal}` : exit_code !== null ? `exit code ${exit_code}` : "exit unknown";
  return `${said === null ? "no last word" : words(said)} (${exit})`;
}

function files(found) {
  const [[name, first], ...others] = Object.entries(found).sort(([, a], [, b]) => b.bytes - a.bytes);
  const line = (name, file) => element("li", {}, `${name}, ${bytes(file.bytes)} `, element("code", {}, file.sha256));
  const summary = element(
    "summary",
    {},
    `${name} `,
    element("code", {}, digest(first.sha256)),
    others.length ? ` and ${others.length} more` : "",
  );
  return element(
    "details",
    {},
    summary,
    element(
      "ul",
      {},
      line(name, first),
      others.map(([name, file]) => line(name, file)),
    ),
  );
}

/** An event on one line: its message or detail if it has one, then whatever else it says. */
function sentence({ kind, data }) {
  if (kind === "plan") return "see the plan";
  if (kind === "sample") return `see what it writes · ${data.dataset}`;
  if (kind.startsWith("alert")) return `${words(data.kind)}: ${data.message}`;
  const { message, detail, step, serial, files: _, ...rest } = data;
  const others = Object.entries(rest).filter(
    ([, value]) => value !== null && !(Array.isArray(value) && value.length === 0),
  );
  const said = others.map(([name, value]) => `${words(name)}: ${plain(value)}`).join("; ");
  return [message ?? detail, said].filter(Boolean).join(" · ");
}

function structure(value) {
  const entries = Object.entries(value);
  const simple = entries.filter(([, inner]) => !isRecord(inner) && !isTable(inner));
  const facts = element(
    "dl",
    { class: "facts-list" },
    simple.map(([name, inner]) => element("div", {}, element("dt", {}, words(name)), element("dd", {}, plain(inner)))),
  );
  const nested = entries
    .filter(([, inner]) => isRecord(inner) || isTable(inner))
    .map(([name, inner]) => [element("h3", {}, words(name)), isTable(inner) ? records(name, inner) : structure(inner)]);
  return [simple.length ? facts : null, ...nested.flat(2)];
}

function records(name, list) {
  const columns = [...new Set(list.flatMap((record) => Object.keys(record)))];
  return element(
    "div",
    { class: "wide" },
    table(
      words(name),
      columns.map(words),
      list.map((record) => columns.map((column) => plain(record[column]))),
    ),
  );
}

function isRecord(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function isTable(value) {
  return Array.isArray(value) && value.length > 0 && value.every(isRecord);
}
