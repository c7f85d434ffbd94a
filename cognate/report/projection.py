"""From what a step takes to what a run takes. Pure; nothing here is measured, and nothing is assumed beyond what `basis` says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cognate.config import TrainingConfig
from cognate.report.facts import Network, Plan, Probe
from cognate.training.checkpoint import SPACE_LEFT_BYTES


@dataclass(frozen=True)
class Time:
    """Seconds of training: of each epoch that is begun, and of all; validation and checkpoints not included."""

    epochs_s: tuple[float, ...]
    total_s: float
    basis: str


@dataclass(frozen=True)
class Disk:
    """Most bytes a run holds at a time: checkpoints, journal and database rows. rows_bytes None: no row was measured

    for_one_bytes, for_two_bytes: that must be free for such a run, and for a second one beside it; a checkpoint leaves some of them free
    """

    checkpoints: int
    checkpoints_bytes: int
    rows_bytes: int | None
    total_bytes: int
    for_one_bytes: int
    for_two_bytes: int
    basis: str


def project_time(plan: Plan, probe: Probe) -> Time:
    steps = steps_done(plan.steps_per_epoch, plan.total_steps)
    each = tuple(probe.step_s * count for count in steps)
    basis = f"{plan.total_steps:,} steps counted from the packed curriculum, times {probe.step_s:.3g} s ({probe.basis})"
    return Time(each, sum(each), basis)


def project_disk(plan: Plan, network: Network, training: TrainingConfig, probe: Probe | None) -> Disk:
    held = checkpoints_held(plan, training)
    size = held * network.checkpoint_bytes
    rows = None if probe is None else row_bytes(plan, training, probe)
    basis = f"{held} checkpoints at a time of {network.checkpoint_bytes / 2**20:.0f} MiB of tensors"
    if not held:
        basis = "not known, for without data there are no steps to make"
    elif rows is None:
        basis += "; without the rows of metrics, of which none was measured"
    else:
        basis += "; lines of the journal as long as the probe's, the database counted as large again"
    total = size + (rows or 0)
    return Disk(held, size, rows, total, total + SPACE_LEFT_BYTES, 2 * total + SPACE_LEFT_BYTES, basis)


def steps_done(steps_per_epoch: Sequence[int], total_steps: int) -> tuple[int, ...]:
    """Steps of each epoch that is begun when `total_steps` are made."""
    done: list[int] = []
    left = total_steps
    for steps in steps_per_epoch:
        if left <= 0:
            break
        done.append(min(steps, left))
        left -= steps
    return tuple(done)


def checkpoints_held(plan: Plan, training: TrainingConfig) -> int:
    """The newest ones, the best one, and the one that is being written before the oldest goes; never more than are made."""
    ends = len(steps_done(plan.steps_per_epoch, plan.total_steps))
    made = plan.total_steps // training.checkpoint_every_steps + ends
    return min(training.keep_checkpoints + 2, made)


def row_bytes(plan: Plan, training: TrainingConfig, probe: Probe) -> int:
    """A row is logged every so many steps, at the first, and at the end of an epoch; between them progress, once a second at most."""
    rows = 1 + math.ceil(plan.total_steps / training.log_every_steps) + plan.epochs
    progress = min(plan.total_steps, math.ceil(plan.total_steps * probe.step_s))
    return 2 * rows * probe.metrics_line_bytes + progress * probe.progress_line_bytes
