// The launch form, drawn from the schema: what is not changed is not sent, and errors stand at the field they are about.

import { isInDoubt, Problem, post } from "./api.js";
import { configSchema, presets } from "./catalog.js";
import { at, differences, fieldOf, fromText, same, sections, toText, tree } from "./configuration.js";
import { element, setText, template } from "./dom.js";
import { plain } from "./format.js";
import { Once } from "./once.js";

/** Show the form in `place`; `from`: the configuration to start with, if it is not a preset's own. */
export async function showForm(place, from = null) {
  const form = new LaunchForm(await configSchema(), await presets(), from);
  place.replaceChildren(form.element);
}

/** The form for a run that goes on from the newest checkpoint of `origin`: what is not changed stays as it is there. */
export async function showFork(place, origin) {
  const presets = [{ name: origin.preset, config: origin.config }];
  const form = new LaunchForm(await configSchema(), presets, null, origin);
  place.replaceChildren(form.element);
}

class LaunchForm {
  element = template("form-view");
  #presets;
  #origin;
  #fields = new Map();
  #once = new Once();
  #outcome = this.element.querySelector(".outcome");

  constructor(schema, presets, from, origin = null) {
    this.#presets = new Map(presets.map((preset) => [preset.name, preset]));
    this.#origin = origin;
    this.#drawPresets(from?.preset);
    if (origin) this.#drawOrigin();
    for (const section of sections(schema)) this.#drawSection(section);
    this.#preset.addEventListener("change", () => this.#reset());
    const recipe = this.#fields.get("recipe");
    recipe.element.addEventListener("input", () => this.#reset());
    recipe.element.hidden = Boolean(origin);
    this.element.addEventListener("input", () => this.#showChanges());
    this.element.querySelector("form").addEventListener("submit", (event) => this.#submit(event));
    if (from?.recipe) recipe.set(from.recipe);
    this.#reset();
    if (from) for (const field of this.#fields.values()) field.set(at(from, field.path));
    this.#showChanges();
  }

  get #preset() {
    return this.element.querySelector("#preset");
  }

  /** What the fields say as long as a person changes nothing else: the preset, by the recipe that is chosen. */
  get #usual() {
    const { config, recipes } = this.#presets.get(this.#preset.value);
    return { ...(recipes?.[this.#fields.get("recipe").value] ?? config), recipe: config.recipe ?? "report" };
  }

  #drawPresets(chosen) {
    for (const name of this.#presets.keys()) this.#preset.append(new Option(name, name, false, name === chosen));
  }

  #drawOrigin() {
    const about = this.element.querySelector(".origin");
    const link = element("a", { href: `#/runs/${this.#origin.id}` }, this.#origin.name);
    about.append("Goes on from the newest checkpoint of ", link, ". Model, data, batch and seed stay as they are there.");
    about.hidden = false;
    setText(this.element.querySelector("h1"), `Fork ${this.#origin.name}`);
    setText(this.element.querySelector("button[value=launch]"), "Fork");
    this.element.querySelector("button[value=check]").hidden = true;
    this.element.querySelector("[data-field=preset]").hidden = true;
  }

  #drawSection({ name, description, fields }) {
    const made = fields.map((described) => {
      const field = new Field(described);
      this.#fields.set(field.path, field);
      return field.element;
    });
    if (!name) {
      this.element.querySelector(".loose").append(...made);
      return;
    }
    const summary = element(
      "summary",
      {},
      name,
      element("span", { class: "hint" }, description),
      element("span", { class: "changes" }),
    );
    const fieldset = element(
      "fieldset",
      {},
      element("legend", { class: "unseen" }, name),
      element("div", { class: "fields" }, made),
    );
    this.element.querySelector(".sections").append(element("details", { "data-section": name }, summary, fieldset));
  }

  /** What a person changed stays; the rest follows the preset. */
  #reset() {
    for (const field of this.#fields.values()) field.follow(at(this.#usual, field.path));
    this.#showChanges();
  }

  #changed() {
    return [...this.#fields.values()].filter((field) => field.isChanged);
  }

  #showChanges() {
    for (const field of this.#fields.values()) field.showChange();
    for (const section of this.element.querySelectorAll("details[data-section]")) {
      const count = section.querySelectorAll(".field.changed").length;
      setText(section.querySelector(".changes"), count ? `${count} changed` : "");
    }
    setText(this.element.querySelector(".request"), JSON.stringify(this.#request(), null, 2));
  }

  #request() {
    const request = {
      ...(!this.#origin && { preset: this.#preset.value }),
      config: tree(this.#changed().map((field) => [field.path, field.value])),
    };
    const name = this.element.querySelector("#name").value.trim();
    const tags = this.element
      .querySelector("#tags")
      .value.split(",")
      .map((tag) => tag.trim())
      .filter(Boolean);
    return { ...request, ...(name && { name }), ...(tags.length && { tags }) };
  }

  async #submit(event) {
    event.preventDefault();
    const isCheck = event.submitter?.value === "check";
    const buttons = this.element.querySelectorAll("button[type=submit]");
    this.#clearErrors();
    for (const button of buttons) button.disabled = true;
    try {
      const path = this.#origin ? `/v1/runs/${this.#origin.id}/fork` : "/v1/runs";
      if (isCheck) this.#showCheck((await post(`${path}?dry_run=true`, this.#request())).config);
      else await this.#launch(path);
    } catch (error) {
      if (!isCheck && isInDoubt(error)) this.#showDoubt(error);
      else this.#showErrors(error);
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }

  async #launch(path) {
    const request = this.#request();
    const { id } = await post(path, request, this.#once.keyOf(request));
    this.#once.done();
    location.hash = `#/runs/${id}`;
  }

  #showCheck(config) {
    const found = differences(config, this.#usual);
    const list = found.map(({ path, value, preset }) =>
      element("li", {}, element("code", {}, path), ` ${plain(value)} instead of ${plain(preset)}`),
    );
    const sentence = found.length
      ? "This can be launched. It differs from the preset in:"
      : "This can be launched. It is the preset as it is.";
    this.#outcome.replaceChildren(element("p", { class: "good" }, sentence), element("ul", {}, list));
  }

  #showDoubt({ message }) {
    const sentence = `It is not known whether it was launched: ${message}. Clicking again is safe: unless something is changed here, it is launched once.`;
    this.#outcome.replaceChildren(element("p", { class: "bad" }, sentence));
  }

  #showErrors(error) {
    const errors =
      error instanceof Problem && error.errors.length ? error.errors : [{ field: "", message: error.message }];
    const places = new Map(
      [...this.element.querySelectorAll("[data-field]")].map((found) => [found.dataset.field, found]),
    );
    const homeless = [];
    for (const { field, message } of errors) {
      const place = places.get(fieldOf(field, places));
      if (place) showError(place, message);
      else homeless.push(field ? `${field}: ${message}` : message);
    }
    const first = this.element.querySelector("[aria-invalid=true]");
    const sentence = first ? "Nothing was launched; see the marked fields." : "Nothing was launched.";
    this.#outcome.replaceChildren(
      element("p", { class: "bad" }, sentence),
      element(
        "ul",
        {},
        homeless.map((text) => element("li", {}, text)),
      ),
    );
    first?.focus();
  }

  #clearErrors() {
    this.#outcome.replaceChildren();
    for (const place of this.element.querySelectorAll(".invalid")) clearError(place);
  }
}

function showError(place, message) {
  for (let box = place.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
  place.classList.add("invalid");
  const said = place.querySelector(".error");
  setText(said, said.textContent ? `${said.textContent}; ${message}` : message);
  place.querySelector("input, select").setAttribute("aria-invalid", "true");
}

function clearError(place) {
  place.classList.remove("invalid");
  setText(place.querySelector(".error"), "");
  place.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
}

/** One parameter: its input, what it means, and what the preset says. */
class Field {
  element;
  path;
  #described;
  #input;
  #usual;
  #back = element("button", { type: "button", class: "back", onclick: () => this.#goBack() });

  constructor(described) {
    this.#described = described;
    this.path = described.path;
    const id = `field-${described.path.replaceAll(".", "-")}`;
    const hint = [described.description, described.range && `(${described.range})`].filter(Boolean).join(" ");
    this.#input = makeInput(described, id);
    const label =
      described.kind === "choices"
        ? element("span", { class: "label", id: `${id}-label` }, described.name)
        : element("label", { for: id }, described.name);
    this.element = element(
      "div",
      { class: "field", "data-field": described.path },
      label,
      this.#input,
      this.#back,
      element("p", { class: "hint", id: `${id}-hint` }, hint),
      element("p", { class: "error", id: `${id}-error`, role: "alert" }),
    );
  }

  get value() {
    const { kind } = this.#described;
    if (kind === "switch") return this.#input.checked;
    if (kind !== "choices") return fromText(this.#described, this.#input.value);
    const chosen = [...this.#input.querySelectorAll(":checked")].map(({ value }) => value);
    return chosen.length || !this.#described.nullable ? chosen : null;
  }

  get isChanged() {
    return !same(this.value, this.#usual);
  }

  /** Take over the preset's value, unless a person chose another one. */
  follow(usual) {
    const keep = this.#usual !== undefined && this.isChanged;
    this.#usual = usual;
    if (!keep) this.set(usual);
  }

  set(value) {
    const { kind } = this.#described;
    if (kind === "switch") this.#input.checked = value;
    else if (kind !== "choices") this.#input.value = toText(value);
    else for (const box of this.#input.querySelectorAll("input")) box.checked = (value ?? []).includes(box.value);
  }

  showChange() {
    const { isChanged } = this;
    this.element.classList.toggle("changed", isChanged);
    this.#back.hidden = !isChanged;
    setText(this.#back, isChanged ? `back to ${plain(this.#usual)}` : "");
  }

  #goBack() {
    this.set(this.#usual);
    this.element.dispatchEvent(new Event("input", { bubbles: true }));
    this.element.querySelector("input, select").focus();
  }
}

function makeInput({ kind, choices, nullable }, id) {
  const described = { id, "aria-describedby": `${id}-hint ${id}-error` };
  if (kind === "switch") return element("input", { ...described, type: "checkbox" });
  if (kind === "choice")
    return element(
      "select",
      described,
      choices.map((choice) => new Option(choice, choice)),
    );
  if (kind === "choices") {
    const boxes = choices.map((choice) =>
      element("label", {}, element("input", { type: "checkbox", value: choice }), choice),
    );
    return element("div", { ...described, class: "choices", role: "group", "aria-labelledby": `${id}-label` }, boxes);
  }
  // Not type=number: a browser hides what it cannot read, and the service would never get to say what is wrong with it.
  return element("input", {
    ...described,
    type: "text",
    inputmode: kind === "number" ? "decimal" : null,
    placeholder: nullable ? "empty" : null,
    autocomplete: "off",
    spellcheck: "false",
  });
}
