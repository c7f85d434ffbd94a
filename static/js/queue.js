// The queue: who waits, in which order; priorities, and holding it.

import { AnswerFeed } from "./answerfeed.js";
import { patch, put } from "./api.js";
import { attempt } from "./dialogs.js";
import { element, refill, setText, table, template, timeElement } from "./dom.js";
import { integer } from "./format.js";

/** Show the queue in `place`; what it returns takes it down again. */
export function showQueue(place, onStatus) {
  const view = template("queue-view");
  const button = view.querySelector("button");
  const feed = new AnswerFeed("/v1/queue", {}, { onChange: draw, onStatus });
  button.addEventListener("click", () => change(() => put("/v1/queue", { held: !feed.answer.held })));
  place.replaceChildren(view);
  feed.open();
  return { close: () => feed.close(), hurry: () => feed.hurry() };

  function draw() {
    const { held, data: runs } = feed.answer;
    view.querySelector(".loading").hidden = true;
    view.querySelector(".facts").hidden = false;
    const many = runs.length === 1 ? "1 run waits" : `${integer(runs.length)} runs wait`;
    const how = held ? "The queue is held: nothing is launched." : "Runs are launched as devices become free.";
    setText(view.querySelector("[role=status]"), `${many}. ${how}`);
    setText(button, held ? "Release the queue" : "Hold the queue");
    const version = runs.map(({ id, name, priority }) => [id, name, priority]);
    refill(view.querySelector(".waiting"), version, () => runs.length > 0 && waiting(runs));
  }

  function waiting(runs) {
    const labels = ["Place", "Run", "Preset", "Launched", "Priority"];
    const rows = runs.map((run) => [
      integer(run.queue_position),
      element("a", { href: `#/runs/${run.id}` }, run.name),
      run.preset,
      timeElement(run.created_at),
      priority(run),
    ]);
    return table("Runs that wait, the next one first", labels, rows);
  }

  function priority(run) {
    const input = element("input", {
      type: "number",
      min: -1000,
      max: 1000,
      step: 1,
      required: true,
      value: run.priority,
      "aria-label": `Priority of ${run.name}`,
    });
    const set = (event) => {
      event.preventDefault();
      change(() => patch(`/v1/runs/${run.id}`, { priority: input.valueAsNumber }));
    };
    return element("form", { class: "inline", onsubmit: set }, input, element("button", {}, "Set"));
  }

  function change(act) {
    return attempt("This", async () => {
      await act();
      feed.poke();
    });
  }
}
