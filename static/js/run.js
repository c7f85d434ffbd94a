// What follows from a run as the service describes it. Pure.

/** Whether a worker of the run may be alive. */
export function isLive(run) {
  return run.allowed_commands.includes("kill");
}

/** Whether nothing of the run is at work or about to be: it may be deleted. */
export function isAtRest(run) {
  return run.state !== "queued" && !isLive(run);
}

/** Where a run is: {step, total, ratio}, each null when not known. */
export function progressOf({ progress }) {
  const { step = null, total_steps: total = null } = progress ?? {};
  return { step, total, ratio: total ? step / total : null };
}
