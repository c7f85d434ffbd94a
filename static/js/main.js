// The page: which view the address asks for, whether the service is there, who is asking.

import { forgetToken, get, hasToken, onUnauthorized } from "./api.js";
import { askForToken, tell, untell } from "./dialogs.js";
import { byId, element, setText } from "./dom.js";
import { showFork, showForm } from "./form.js";
import { percent, time } from "./format.js";
import { showGroups } from "./groups.js";
import { showQueue } from "./queue.js";
import { showReadiness } from "./readinessview.js";
import { showRunList } from "./runlist.js";
import { showRun } from "./runview.js";

const RUN = /^#\/runs\/(run_[0-9a-f-]{36})$/;
const FORK = /^#\/launch\?fork=(run_[0-9a-f-]{36})$/;
const READINESS = /^#\/readiness(?:\?preset=(\w+)(?:&recipe=(\w+))?)?$/;
const AGAIN = /^#\/launch\?like=(run_[0-9a-f-]{36})$/;

let view = null;
let lastLive = null;

onUnauthorized(askForToken);
addEventListener("hashchange", route);
addEventListener("online", () => view?.hurry());
document.addEventListener("visibilitychange", () => document.hidden || view?.hurry());
byId("try-now").addEventListener("click", () => view?.hurry());
byId("forget").addEventListener("click", () => {
  forgetToken();
  location.reload();
});
await introduce();
await route();

/** What this is, for the footer; the first request, so the one that asks for a token where one is needed. */
async function introduce() {
  try {
    const info = await get("/v1/info");
    setText(byId("version"), `${info.name} ${info.version}`);
    byId("forget").hidden = !hasToken();
  } catch (error) {
    tell(`${error.message}.`);
  }
}

async function route() {
  view?.close();
  view = null;
  untell();
  showStatus("none");
  const place = byId("view");
  const [, id] = location.hash.match(RUN) ?? [];
  try {
    if (id)
      view = showRun(place, id, showStatus, (name, ratio) =>
        showTitle(ratio === null ? name : `${percent(ratio)} · ${name}`),
      );
    else if (location.hash.startsWith("#/launch")) await showLaunch(place);
    else if (READINESS.test(location.hash)) view = await showPresetReadiness(place);
    else if (location.hash === "#/groups") view = showGroups(place, showStatus);
    else if (location.hash === "#/queue") view = showQueue(place, showStatus);
    else view = showRunList(place, showStatus);
  } catch (error) {
    place.replaceChildren(element("p", { class: "bad" }, `This could not be shown: ${error.message}.`));
  }
  showTitle(id ? "Run" : place.querySelector("h1")?.textContent);
  markPlace();
  place.querySelector("h1")?.focus();
}

async function showLaunch(place) {
  const [, like] = location.hash.match(AGAIN) ?? [];
  const [, origin] = location.hash.match(FORK) ?? [];
  if (origin) return showFork(place, await get(`/v1/runs/${origin}`));
  await showForm(place, like ? await get(`/v1/runs/${like}/config`) : null);
}

function showPresetReadiness(place) {
  const [, preset = "reasoning", recipe = "report"] = location.hash.match(READINESS);
  return showReadiness(place, { preset, recipe }, showStatus);
}

function showTitle(text) {
  const title = `${text ?? ""} – Cognate`;
  if (document.title !== title) document.title = title;
}

function markPlace() {
  for (const link of document.querySelectorAll("nav a")) {
    if (location.hash.split("?")[0] === link.hash || (link.hash === "#/" && !location.hash))
      link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

/** Whether what is on the screen is what is happening. */
function showStatus(status) {
  if (status === "live") lastLive = null;
  if (status === "waiting") lastLive ??= Date.now() / 1000;
  const isLost = lastLive !== null && (status === "waiting" || status === "connecting");
  document.body.classList.toggle("disconnected", isLost);
  byId("lost").hidden = !isLost;
  setText(
    byId("lost-since"),
    isLost
      ? `Disconnected from the service since ${time(lastLive)}. What you see may be out of date; trying again.`
      : "",
  );
  const shown = isLost ? "disconnected" : status;
  byId("connection").dataset.status = shown;
  setText(byId("connection"), { live: "live", connecting: "connecting", disconnected: "disconnected" }[shown] ?? "");
}
