// Groups: runs launched, looked at and commanded as one.

import { AnswerFeed } from "./answerfeed.js";
import { post } from "./api.js";
import { attempt, confirm } from "./dialogs.js";
import { element, refill, setText, template } from "./dom.js";
import { words } from "./format.js";
import { Once } from "./once.js";
import { Outcome } from "./outcome.js";
import { RunsTable } from "./runlist.js";
import { command } from "./words.js";

const SHOWN = 50;
const COMMANDS = ["pause", "resume", "stop", "kill"]; // what the service takes for a group

/** Show the groups in `place`; what it returns takes them down again. */
export function showGroups(place, onStatus) {
  const view = template("groups-view");
  const cards = new Map();
  const once = new Once();
  const feed = new AnswerFeed(
    "/v1/groups",
    { limit: SHOWN },
    { onChange: draw, onProgress: (id, progress) => cards.forEach((card) => card.progress(id, progress)), onStatus },
  );
  view.querySelector("form").addEventListener("submit", launch);
  place.replaceChildren(view);
  feed.open();
  return { close: () => feed.close(), hurry: () => feed.hurry() };

  function draw() {
    const { data: groups, has_more: hasMore } = feed.answer;
    view.querySelector(".loading").hidden = true;
    view.querySelector(".empty").hidden = groups.length > 0;
    view.querySelector(".rest").hidden = !hasMore;
    const all = view.querySelector(".all");
    groups.forEach((group, position) => {
      if (!cards.has(group.id)) cards.set(group.id, new Card(group, give));
      const card = cards.get(group.id);
      if (all.children[position] !== card.element) all.insertBefore(card.element, all.children[position] ?? null);
      card.update(group);
    });
  }

  async function launch(event) {
    event.preventDefault();
    const input = view.querySelector("input");
    const button = view.querySelector("form button");
    button.disabled = true;
    await attempt("Launch", async () => {
      const request = input.value.trim() ? { name: input.value.trim() } : {};
      await post("/v1/groups", request, once.keyOf(request));
      once.done();
      feed.poke();
    });
    button.disabled = false;
  }

  async function give(group, name) {
    const asked = command(name);
    const question = `${asked.label} every run of ${group.name}?`;
    if (asked.question && !(await confirm({ ...asked, question }))) return;
    await attempt(asked.label, async () => {
      await post(`/v1/groups/${group.id}/${name}`);
      feed.poke();
    });
  }
}

class Card {
  element = template("group");
  #table = new RunsTable("Runs of the group");
  #runs = [];
  #give;
  #outcome;

  constructor(group, give) {
    this.#give = give;
    this.element.dataset.group = group.id;
    this.element.querySelector(".buttons").before(this.#table.element);
    this.#outcome = new Outcome(this.element.querySelector(".results"), group.id);
    setText(this.element.querySelector("h2"), group.name);
  }

  update(group) {
    const states = Object.entries(group.states).map(([state, count]) => `${count} ${words(state)}`);
    setText(this.element.querySelector(".hint"), states.join(", "));
    this.#show(group.runs);
    this.#outcome.update(group.runs);
    const names = COMMANDS.filter((name) => group.runs.some((run) => run.allowed_commands.includes(name)));
    refill(this.element.querySelector(".buttons"), names, () => names.map((name) => this.#button(group, name)));
  }

  progress(id, progress) {
    if (this.#runs.some((run) => run.id === id))
      this.#show(this.#runs.map((run) => (run.id === id ? { ...run, progress } : run)));
  }

  #show(runs) {
    this.#runs = runs;
    this.#table.update(runs);
  }

  #button(group, name) {
    const { label, question } = command(name);
    const properties = { type: "button", class: question ? "grave" : null, onclick: () => this.#give(group, name) };
    return element("button", { ...properties, "aria-label": `${label} ${group.name}` }, label);
  }
}
