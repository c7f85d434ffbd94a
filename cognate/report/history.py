"""What a run directory tells of the past: the metric rows that count, epochs, attempts, warnings, and which checkpoint to take.

Read from the journals alone, so it needs no service. Of a step that was trained more than once, after a resume from before it, the
row of the latest attempt counts, as in the service's database.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from cognate.config import RunConfig
from cognate.events import ENDINGS, Event, Kind, MalformedLine, spell
from cognate.metrics import KEYS
from cognate.rundir import RunDir, read_json, read_to_end

_AXES = ("step", "epoch", "attempt", "at")


@dataclass(frozen=True)
class Row:
    """One row of metrics. epoch counts passes with their fraction; at is seconds since the epoch, UTC; only what was measured."""

    step: int
    epoch: float
    attempt: int
    at: float
    values: dict[str, float]


@dataclass(frozen=True)
class Attempt:
    """One process life. ending: its last word, None if it had none; exit: what its parent saw of its end, None if nobody did

    resumed_from: the step of the checkpoint it began with; last_step: of its last row
    """

    number: int
    environment: dict[str, Any]
    began: float | None
    resumed_from: int | None
    last_step: int | None
    ending: Event | None
    exit: dict[str, Any] | None


@dataclass(frozen=True)
class Epoch:
    """Means over the logged rows of an epoch, of those that are finite; what its end was found to be, None before it came.

    last_loss: over the last quarter of its rows
    """

    number: int
    rows: int
    last_step: int
    loss: float | None
    last_loss: float | None
    perplexity: float | None
    is_whole: bool
    ended_with: dict[str, float]  # val_loss, accuracies, time: by metric key, of the epoch's last row that has them


@dataclass(frozen=True)
class History:
    run: RunDir
    config: RunConfig
    rows: tuple[Row, ...]
    attempts: tuple[Attempt, ...]
    plan: dict[str, Any] | None
    checkpoints: dict[int, Event]  # by step, as they were told when they were saved
    warnings: tuple[tuple[int, str], ...] = field(default=())  # attempt, sentence

    @property
    def is_finished(self) -> bool:
        return any(attempt.ending is not None and attempt.ending.kind is Kind.FINISHED for attempt in self.attempts)

    def newest(self, key: str) -> float | None:
        """The newest value of a metric."""
        return next((row.values[key] for row in reversed(self.rows) if key in row.values), None)

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(epochs, values) of the finite values of a metric."""
        points = [(row.epoch, row.values[key]) for row in self.rows if math.isfinite(row.values.get(key, math.nan))]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def epoch_ends(self) -> dict[int, int]:
        """Epochs by the step that ended them, as planned; empty without a plan."""
        ends: dict[int, int] = {}
        step = 0
        for epoch, steps in enumerate((self.plan or {}).get("steps_per_epoch", []), start=1):
            step += steps
            ends[step] = epoch
        return ends


def read_history(run: RunDir) -> History:
    """Everything the journals tell; a damaged line becomes a warning."""
    rows: dict[int, Row] = {}
    attempts: list[Attempt] = []
    plan: dict[str, Any] | None = None
    checkpoints: dict[int, Event] = {}
    warnings: list[tuple[int, str]] = []
    for attempt in run.attempts():
        began, environment, last_step, ending, resumed_from = None, {}, None, None, None
        for entry, _ in read_to_end(attempt.journal):
            if isinstance(entry, MalformedLine):
                warnings.append((attempt.number, f"a line of the journal cannot be read: {entry}"))
            elif entry.kind is Kind.METRICS:
                last_step = int(entry.data["step"])
                rows[last_step] = Row(last_step, entry.data["epoch"], attempt.number, entry.at, entry.data["values"])
            elif entry.kind is Kind.STARTED:
                resumed_from, began = entry.data.get("resumed_from_step"), entry.at
                environment = {name: value for name, value in entry.data.items() if name != "resumed_from_step"}
            elif entry.kind is Kind.PLAN:
                plan = entry.data
            elif entry.kind is Kind.CHECKPOINT:
                step, before = int(entry.data["step"]), checkpoints.get(int(entry.data["step"]))
                if before is None or before.data["files"] != entry.data["files"]:  # an attempt tells of the one it begins with again
                    checkpoints[step] = entry
            elif entry.kind is Kind.WARNING:
                warnings.append((attempt.number, str(entry.data["message"])))
            elif entry.kind in ENDINGS:
                ending = entry
        exit = read_json(attempt.exit) if attempt.exit.is_file() else None
        attempts.append(Attempt(attempt.number, environment, began, resumed_from, last_step, ending, exit))
    in_order = _with_what_came_afterwards(run, [rows[step] for step in sorted(rows)])
    return History(run, run.config(), tuple(in_order), tuple(attempts), plan, checkpoints, tuple(warnings))


def _with_what_came_afterwards(run: RunDir, rows: list[Row]) -> list[Row]:
    """What was measured once all was over belongs to the last row, as in the service's database; of two measurements the newer."""
    for entry, _ in read_to_end(run.afterwards):
        if rows and isinstance(entry, Event) and entry.kind is Kind.METRICS:
            rows[-1] = replace(rows[-1], values={**rows[-1].values, **entry.data["values"]})
    return rows


def epochs(history: History) -> list[Epoch]:
    """The epochs that were begun, in order; what was measured before the first step belongs to none."""
    trained = [row for row in history.rows if row.step > 0]
    numbers = sorted({math.ceil(row.epoch) for row in trained})
    return [_epoch(number, [row for row in trained if math.ceil(row.epoch) == number]) for number in numbers]


def _epoch(number: int, rows: list[Row]) -> Epoch:
    def mean(key: str, newest: int | None = None) -> float | None:
        finite = [row.values[key] for row in rows if math.isfinite(row.values.get(key, math.nan))]
        return fmean(finite[-newest:] if newest else finite) if finite else None

    ended_with = {key: value for row in rows for key, value in row.values.items() if key not in ("loss", "perplexity")}
    last = mean("loss", max(1, len(rows) // 4))
    return Epoch(number, len(rows), rows[-1].step, mean("loss"), last, mean("perplexity"), rows[-1].epoch == number, ended_with)


def metrics_csv(history: History) -> str:
    """Every row that counts with all metrics as columns; empty where one was not measured, NaN, Infinity or -Infinity by name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_AXES, *KEYS])
    for row in history.rows:
        measured = (spell(row.values[key]) if key in row.values else "" for key in KEYS)
        writer.writerow([row.step, row.epoch, row.attempt, row.at, *measured])
    return text.getvalue()


# --- which checkpoint -------------------------------------------------------------------------------------


class NothingSaved(RuntimeError):
    """A run without a complete checkpoint."""


@dataclass(frozen=True)
class Chosen:
    """A checkpoint and why it was taken. val_loss: as measured at its step, None if it was not"""

    step: int
    path: Path
    val_loss: float | None
    why: str


def best(run: RunDir) -> Chosen:
    """The checkpoint with the smallest held-out loss, or the newest one, with the reason; raises NothingSaved."""
    step, noted = run.best_checkpoint(), run.best()
    if step is None:
        raise NothingSaved(f"{run.path.name} has no checkpoint")
    if noted is not None and noted[0] == step:
        return Chosen(step, run.checkpoint(step), noted[1], "the smallest held-out loss")
    reason = "no checkpoint has a held-out loss" if noted is None else f"the best one, of step {noted[0]}, is not there any more"
    return Chosen(step, run.checkpoint(step), None, f"the newest, for {reason}")


def last_epoch_end(history: History) -> tuple[int, Chosen] | None:
    """(epoch, checkpoint) of the latest epoch whose end is still kept."""
    ends = history.epoch_ends()
    kept = [(step, path) for step, path in history.run.complete_checkpoints() if step in ends]
    if not kept:
        return None
    step, path = kept[-1]
    val_loss = next((row.values.get("val_loss") for row in history.rows if row.step == step), None)
    return ends[step], Chosen(step, path, val_loss, f"the end of epoch {ends[step]}")


def falling_back(attempts: tuple[Attempt, ...]) -> list[tuple[Attempt, int]]:
    """Attempts that went on from before where the one before them had come, and how many steps were trained again."""
    return [
        (later, before.last_step - (later.resumed_from or 0))
        for before, later in pairwise(attempts)
        if before.last_step is not None and later.began is not None and before.last_step > (later.resumed_from or 0)
    ]
