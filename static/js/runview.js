// One run: its state and commands, its charts, and everything else known about it.

import { patch, post, remove } from "./api.js";
import { attempt, confirm } from "./dialogs.js";
import { element, refill, setText, template, timeElement } from "./dom.js";
import { Evaluations } from "./evaluations.js";
import { duration, integer, number, percent, words } from "./format.js";
import { LogTail } from "./logtail.js";
import { MetricsBoard } from "./metricsboard.js";
import { reportMaker } from "./outcome.js";
import { showAlerts, showAttempts, showCheckpoints, showEvents, showPlan, showWarnings } from "./records.js";
import { isAtRest, isLive, progressOf } from "./run.js";
import { showConfiguration } from "./runconfig.js";
import { RunFeed } from "./runfeed.js";
import { Samples } from "./samples.js";
import { command, reasonMeaning, stateMeaning } from "./words.js";

const SHOW_EVERY_MS = 100;

/** Show run `id` in `place`; what it returns takes it down again. */
export function showRun(place, id, onStatus, onName) {
  const view = template("run-view");
  const board = new MetricsBoard(view);
  view.querySelector(".again").href = `#/launch?like=${id}`;
  const log = new LogTail(view.querySelector(".log"), id);
  const samples = new Samples(view.querySelector(".samples"));
  const evaluations = new Evaluations(view.querySelector(".evaluations"), id);
  const feed = new RunFeed(id, changed, onStatus);
  const news = new Set();
  let pending = null;
  place.replaceChildren(view);
  feed.open();
  return {
    close() {
      clearTimeout(pending);
      feed.close();
      board.close();
      log.close();
      evaluations.close();
    },
    hurry: () => feed.hurry(),
  };

  /** Changes may come a hundred times a second; they are shown ten times. */
  function changed(what) {
    news.add(what);
    pending ??= setTimeout(show, SHOW_EVERY_MS);
  }

  function show() {
    pending = null;
    if (news.has("missing")) place.replaceChildren(...noSuchRun(id));
    if (news.has("metrics")) board.update(feed.series);
    if (news.has("events")) showWhatHappened();
    if (feed.run && news.size) evaluations.follow(feed.events, feed.run, feed.checkpoints);
    if (feed.run && (news.has("run") || news.has("progress"))) showFacts();
    news.clear();
  }

  function showFacts() {
    const { run } = feed;
    view.querySelector(".loading").hidden = true;
    view.querySelector(".facts").hidden = false;
    setText(view.querySelector("h1"), run.name);
    onName(run.name, progressOf(run).ratio);
    refill(view.querySelector(".about"), [run.preset, run.tags, run.created_at, run.notes], () => about(run));
    showState(view, run);
    showAlerts(view.querySelector(".alerts"), run.alerts);
    board.expect(run.expected_loss);
    showProgress(view, run);
    refill(view.querySelector(".commands"), run.allowed_commands, () => commands(run, give));
    const canFork = feed.checkpoints.some((found) => found.removed_at === null);
    refill(view.querySelector(".manage"), [canFork, isAtRest(run)], () => manage(id, canFork, isAtRest(run) && takeAway));
    showCheckpoints(view.querySelector(".checkpoints"), feed.checkpoints, pin);
    showAttempts(view.querySelector(".attempts"), feed.attempts);
    showConfiguration(view.querySelector(".configuration"), run);
    // Made of what there is when it is asked for, so there is a new button once more has been trained.
    refill(view.querySelector(".report"), [run.state, run.attempt], () => run.attempt > 0 && [reportMaker(`/v1/runs/${id}`)]);
    log.follow(run.attempt, isLive(run));
  }

  function showWhatHappened() {
    const { events } = feed;
    samples.follow(events);
    showPlan(view.querySelector(".plan"), events);
    showWarnings(view.querySelector(".warnings"), events);
    showEvents(view.querySelector(".events"), events);
  }

  async function takeAway() {
    const asked = command("delete");
    if (!(await confirm(asked))) return;
    await attempt(asked.label, async () => {
      await remove(`/v1/runs/${id}`);
      location.hash = "#/";
    });
  }

  /** Shown once the run's stream tells of it. */
  function pin({ id: checkpoint, is_pinned }) {
    attempt(is_pinned ? "Unpinning" : "Pinning", () => patch(`/v1/checkpoints/${checkpoint}`, { pinned: !is_pinned }));
  }

  async function give(name) {
    const asked = command(name);
    if (asked.question && !(await confirm(asked))) return;
    await attempt(asked.label, async () => feed.adopt(await post(`/v1/runs/${id}/${name}`)));
  }
}

/** What may be done with a run besides commanding its worker. */
function manage(id, canFork, takeAway) {
  const { label, meaning } = command("delete");
  return [
    canFork && element("a", { class: "button", href: `#/launch?fork=${id}` }, "Fork …"),
    takeAway && element("button", { type: "button", class: "grave", title: meaning, onclick: takeAway }, label),
  ];
}

function noSuchRun(id) {
  return [
    element("h1", { tabindex: "-1" }, "No such run"),
    element("p", {}, `The service knows no run ${id}. `, element("a", { href: "#/" }, "All runs")),
  ];
}

function about(run) {
  const tags = run.tags.map((tag) => element("span", { class: "tag" }, tag));
  return [
    element("span", {}, `preset ${run.preset}`),
    ...tags,
    element("span", {}, "created ", timeElement(run.created_at)),
    run.forked_from && origin(run.forked_from),
    element("code", {}, run.id),
    run.notes && element("span", {}, run.notes),
  ];
}

function origin({ run_id: id, step }) {
  return element("span", {}, "forked from ", element("a", { href: `#/runs/${id}` }, id), ` at step ${integer(step)}`);
}

function showState(view, run) {
  const badge = view.querySelector(".state");
  badge.className = `state state-${run.state}`;
  setText(badge, words(run.state));
  const place = run.queue_position && `Place ${run.queue_position} in the queue.`;
  setText(view.querySelector(".phase"), run.phase && isLive(run) ? words(run.phase) : "");
  setText(view.querySelector(".meaning"), [stateMeaning(run.state), place].filter(Boolean).join(" "));
  setText(view.querySelector(".reason"), run.state_reason ? `Why: ${reasonMeaning(run.state_reason)}.` : "");
  setText(view.querySelector(".detail"), run.state_detail ?? "");
}

function showProgress(view, run) {
  const { step, total, ratio } = progressOf(run);
  const bar = view.querySelector("progress");
  bar.hidden = ratio === null;
  bar.value = ratio ?? 0;
  const { epoch, eta_s, tokens_per_s, step_time_s, skipped_steps } = run.progress ?? {};
  const pace = isLive(run);
  const facts = [
    ["Step", total === null ? null : `${integer(step)} of ${integer(total)} · ${percent(ratio)}`],
    ["Epoch", epoch && number(epoch)],
    ["Time left", pace && eta_s && `about ${duration(eta_s)}`],
    ["Speed", pace && tokens_per_s && `${integer(Math.round(tokens_per_s))} tokens/s`],
    ["A step takes", pace && step_time_s && `${number(step_time_s)} s`],
    ["Skipped steps", skipped_steps && integer(skipped_steps)],
    ["Attempt", run.attempt > 1 && integer(run.attempt)],
  ].filter(([, value]) => value);
  refill(view.querySelector(".progress-facts"), facts, () =>
    facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function commands(run, give) {
  const names = run.allowed_commands;
  if (!names.length) return null;
  const buttons = names.map((name) => {
    const { label, question } = command(name);
    return element(
      "button",
      {
        type: "button",
        "data-command": name,
        class: question ? "grave" : null,
        "aria-describedby": `meaning-${name}`,
        onclick: () => give(name),
      },
      label,
    );
  });
  const meanings = names.map((name) => {
    const { label, meaning } = command(name, isLive(run));
    return element("li", { id: `meaning-${name}` }, element("strong", {}, label), ` ${meaning}`);
  });
  return [element("div", { class: "buttons" }, buttons), element("ul", { class: "hint" }, meanings)];
}
