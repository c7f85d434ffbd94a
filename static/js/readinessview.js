// Whether a preset can be trained here: the verdict, its findings, and what it rests on. Looks again by itself.

import { get, isPassing, post } from "./api.js";
import { presets } from "./catalog.js";
import { tell } from "./dialogs.js";
import { element, refill, setText, template, timeElement } from "./dom.js";
import { duration } from "./format.js";
import { Looker } from "./looker.js";
import { showFindings, showLive, showReport } from "./readinessreport.js";
import { verdictWords } from "./words.js";

const WHILE_MEASURING_MS = 1000;
const AFTERWARDS_MS = 5000; // disk, devices and data may change under a finished measurement

/** Show the readiness of {preset, recipe} in `place`; what it returns takes it down again. */
export async function showReadiness(place, wanted, onStatus) {
  const view = template("readiness-view");
  place.replaceChildren(view);
  const part = (name) => view.querySelector(`.${name}`);
  const looker = new Looker(look);
  const [preset, recipe] = view.querySelectorAll("select");
  const again = view.querySelector("button");
  const known = await presets();
  const option = (chosen) => (name) => element("option", { value: name, selected: name === chosen }, name);
  preset.replaceChildren(...known.map(({ name }) => name).map(option(wanted.preset)));
  recipe.replaceChildren(...recipesOf(wanted.preset).map(option(wanted.recipe)));
  recipe.disabled = recipe.options.length < 2;
  preset.addEventListener("change", () => go(preset.value, recipesOf(preset.value).includes(wanted.recipe) ? wanted.recipe : "report"));
  recipe.addEventListener("change", () => go(wanted.preset, recipe.value));
  again.addEventListener("click", measure);
  looker.poke(0);
  return { close: () => looker.close(), hurry: () => looker.poke(0) };

  function go(toPreset, byRecipe) {
    location.hash = `#/readiness?preset=${toPreset}${byRecipe === "report" ? "" : `&recipe=${byRecipe}`}`;
  }

  function recipesOf(name) {
    return Object.keys(known.find((each) => each.name === name)?.recipes ?? { report: true });
  }

  async function look() {
    const found = await get("/v1/readiness", wanted).catch((error) => {
      if (isPassing(error)) onStatus("waiting");
      else tell(`${error.message}.`);
      throw error;
    });
    onStatus("live");
    draw(found);
    if (!document.hidden) looker.poke(found.state === "measuring" ? WHILE_MEASURING_MS : AFTERWARDS_MS);
  }

  async function measure() {
    again.disabled = true;
    await post(`/v1/readiness?${new URLSearchParams(wanted)}`).catch((error) => tell(`${error.message}.`));
    looker.poke(0);
  }

  function draw(found) {
    const { report, state, verdict } = found;
    part("loading").hidden = true;
    part("facts").hidden = false;
    again.disabled = state === "measuring";
    part("verdict").className = `verdict state verdict-${verdict ?? "none"}`;
    setText(part("verdict"), verdictWords(verdict));
    refill(part("age"), [found.measured_at, found.is_current, state], () => ageOf(found));
    drawWork(found);
    showLive(part("live"), found.live);
    if (!report) return;
    showFindings(part("findings"), report);
    showReport(part("report"), report);
  }

  function drawWork({ state, job }) {
    const bar = view.querySelector("progress");
    const isMeasuring = state === "measuring";
    bar.hidden = !isMeasuring;
    if (job?.progress?.fraction) bar.value = job.progress.fraction;
    else bar.removeAttribute("value");
    setText(part("work"), isMeasuring ? `Measuring: ${doing(job)} …` : "");
    setText(part("trouble"), state === "failed" ? `The measurement came to nothing: ${job.detail ?? job.state}.` : "");
  }
}

function doing({ state, progress }) {
  return progress?.message ?? (state === "queued" ? "waiting for its turn" : "starting");
}

function ageOf({ measured_at, is_current, age_s, state }) {
  if (measured_at === null) return state === "measuring" ? "This takes about a minute, and longer while runs are at work." : "Nothing was measured yet.";
  const outdated = is_current ? "." : ". Data, settings, devices or the disk have changed since, or a day has passed.";
  return ["Measured ", timeElement(measured_at), age_s > 3600 ? `, ${duration(age_s)} ago` : "", outdated];
}
