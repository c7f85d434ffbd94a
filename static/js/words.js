// What states, reasons and commands mean, in words. One that is not here is shown by its name.

import { words } from "./format.js";

const STATES = {
  queued: "Waiting for a free device.",
  starting: "The worker is starting.",
  running: "The worker is at work.",
  pausing: "Finishing the step and saving; the device will be free when the state says paused.",
  paused: "Saved, and off the device. Resume goes on from the newest checkpoint.",
  stopping: "The worker is leaving.",
  stopped: "Ended before it was complete. It cannot be resumed.",
  interrupted: "The worker went away before it was done or had saved. Resume goes on from the newest checkpoint.",
  failed: "The worker gave up. Resume tries again from the newest checkpoint.",
  completed: "Trained to the end.",
};

const REASONS = {
  user_pause: "pause was asked for",
  user_stop: "stop was asked for",
  user_kill: "kill was asked for",
  pause_timeout: "the pause took longer than it was given",
  auto_resume: "launched again by itself",
  stalled: "the worker said nothing for long",
  shutdown: "the service was shut down",
  exit_nonzero: "the worker left with an error code",
  signal: "a signal ended the worker",
  worker_lost: "the worker was lost",
  host_restart: "the machine was restarted",
  launch_failed: "the worker could not be started",
  nonfinite_loss: "the loss was not a finite number",
  oom_cuda: "the GPU's memory did not suffice",
  oom_host: "the machine's memory did not suffice",
  gpu_error: "the GPU failed",
  disk_full: "the disk is full",
  data_missing: "training data is missing",
  worker_error: "an error in the worker",
};

const COMMANDS = {
  pause: {
    label: "Pause",
    meaning: "finishes the current step, saves a checkpoint and frees the device; resume goes on from there.",
    idle: "takes the run out of the queue; resume puts it back.",
  },
  resume: { label: "Resume", meaning: "queues the run again; it goes on from its newest whole checkpoint." },
  checkpoint: { label: "Save now", meaning: "saves a checkpoint after the current step and goes on." },
  stop: {
    label: "Stop",
    meaning: "finishes the current step, saves a checkpoint and ends the run for good.",
    idle: "ends the run for good.",
    question: "Stop this run for good?",
    consequence:
      "A worker at work finishes its step and saves a checkpoint first. A stopped run cannot be resumed; to go on later, leave it paused instead.",
  },
  kill: {
    label: "Kill",
    meaning: "ends the worker at once and saves nothing.",
    question: "Kill this run?",
    consequence:
      "Its worker is ended at once and saves nothing: everything since the last checkpoint is lost, and the run cannot be resumed.",
  },
  delete: {
    label: "Delete",
    meaning: "removes the run with all it left.",
    question: "Delete this run?",
    consequence: "Its metrics, checkpoints, events and log are removed for good. Runs that were forked from it are not touched.",
  },
};

const VERDICTS = { ready: "Ready", ready_with_warnings: "Ready, with warnings", not_ready: "Not ready" };

export function verdictWords(verdict) {
  return VERDICTS[verdict] ?? "Not known yet";
}

export function stateMeaning(state) {
  return STATES[state] ?? "";
}

export function reasonMeaning(reason) {
  return REASONS[reason] ?? words(reason);
}

/**
 * {label, meaning, question?, consequence?}; a command with a question is asked back before it is given.
 * isLive: whether a worker of the run is there to be told.
 */
export function command(name, isLive) {
  const { idle, ...known } = COMMANDS[name] ?? { label: words(name), meaning: "" };
  return isLive || !idle ? known : { ...known, meaning: idle };
}
