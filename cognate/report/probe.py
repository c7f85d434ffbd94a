"""A few steps of the real model and optimizer on real batches: what a step takes in time and memory.

Batches of 1, 2, 4 ... rows go through the model until one is as large as a run's, or the time is up. Then whole steps are
timed where they fit; else the largest part that was timed is multiplied up, and `basis` says so. Nothing is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from statistics import median
from typing import final

import torch

from cognate.config import RunConfig, TrainingConfig
from cognate.events import Event, Kind, encode
from cognate.model import Cognate, Loss
from cognate.report.facts import Probe
from cognate.report.machine import Neighbours, Peak
from cognate.report.plan import Material
from cognate.training.average import WeightAverage
from cognate.training.checkpoint import Position
from cognate.training.choosing import choose
from cognate.training.execution import Execution, activation_dtype, parts, rows_at_once
from cognate.training.loop import backward, build_optimizer
from cognate.training.measure import step_values
from cognate.training.schedule import lr_scale

WHOLE_STEPS, WHOLE_S = 8, 5.0  # once one of both is reached, three steps at least, it is enough


class Disturbing(RuntimeError):
    """A run needs the machine; the probe makes way."""


class NotFinite(RuntimeError):
    """The loss of a step is not a finite number."""


def probe(config: RunConfig, material: Material, device: torch.device, budget_s: float, must_stop: Callable[[], bool]) -> Probe:
    """Measure for about `budget_s` seconds; more where a single row takes longer. must_stop: asked between passes; raises Disturbing."""
    began, neighbours = time.monotonic(), Neighbours()
    trial = _Trial(config, material, device, must_stop)
    full = trial.rows_at_once
    trial.timed(partial(trial.passes, 1))  # the first of anything is slow
    trial.timed(trial.update)
    optimizer_s, peak = trial.measured(trial.update)

    rows, pass_s, before = 0, 0.0, (0, peak)
    while rows < full and (not rows or began + budget_s - time.monotonic() > 2.2 * pass_s):
        before, rows = (rows, peak), min(2 * rows or 1, full)
        pass_s, peak = trial.measured(partial(trial.passes, rows))
    step_s = multiplied_up(pass_s, rows, config.training) + optimizer_s
    whole_s: list[float] = []
    while rows == full and not _is_enough(whole_s) and began + budget_s - time.monotonic() > step_s:
        seconds, peak = trial.measured(partial(trial.step, len(whole_s)))
        whole_s.append(seconds)
        step_s = median(whole_s)
    if rows < full:
        peak = peak_at(full, rows, peak, before)
    trial.check()
    tokens = config.training.batch_size * config.training.sequence_length * config.training.gradient_accumulation
    return Probe(
        len(whole_s), rows, full, step_s, optimizer_s, tokens / step_s, peak, *trial.line_bytes(), time.monotonic() - began,
        neighbours.share() if device.type == "cpu" else None, _basis(len(whole_s), rows, config.training),
    )  # fmt: skip


def multiplied_up(pass_s: float, rows: int, training: TrainingConfig) -> float:
    """Seconds of all passes of a step, from those of one over `rows` rows."""
    return pass_s * training.batch_size / rows * training.gradient_accumulation


def peak_at(full: int, rows: int, peak: int | None, before: tuple[int, int | None]) -> int | None:
    """Bytes at `full` rows, on the line through the last two (rows, bytes) that were measured; 0 rows are the update alone."""
    if peak is None or before[1] is None:
        return None
    return peak + max(0, peak - before[1]) * (full - rows) // (rows - before[0])


@final
class _Trial:
    """A model and an optimizer as a run would begin with."""

    def __init__(self, config: RunConfig, material: Material, device: torch.device, must_stop: Callable[[], bool]) -> None:
        assert material.batches is not None, "there is nothing to train on"
        self._config, self._batches, self._choices = config, material.batches, material.choices
        self._device, self._must_stop = device, must_stop
        torch.manual_seed(config.seed)
        self._model = Cognate(config.model).to(device)
        self._model.compute_dtype = activation_dtype(config, device)
        self._model.train()
        self._optimizer = build_optimizer(self._model, config)
        for group in self._optimizer.param_groups:  # the warm-up's first; at the peak new weights may not stay finite
            group["lr"] *= lr_scale(1, material.plan.total_steps, config.training)
        self._average = WeightAverage(self._model, config.training.weight_ema, None) if config.training.weight_ema else None
        self._losses: list[Loss] = []
        self.rows_at_once = rows_at_once(self._model, lambda: self._batches.batch(1, 0), config.training, device, None)
        self._model.zero_grad(set_to_none=True)

    def passes(self, rows: int) -> None:
        """Loss and gradient of the first `rows` rows of a batch."""
        self._optimizer.zero_grad(set_to_none=True)
        for part, _ in islice(parts(self._batches.batch(1, 0), rows, self._device), 1):
            loss = self._model.loss(part.tokens, part.targets, part.documents, measure=True)
            torch.autograd.backward(loss.loss)
            self._losses = [loss]

    def update(self) -> None:
        self._optimizer.step()
        if self._average is not None:
            self._average.update(1)

    def step(self, number: int) -> None:
        """All of a step, as the loop does it."""
        training = self._config.training
        whole_steps = max(1, self._batches.steps_in_epoch(1) // training.gradient_accumulation)  # of an epoch; its last has what is left
        position = Position(epoch_step=number % whole_steps)
        self._optimizer.zero_grad(set_to_none=True)
        execution = Execution(self.rows_at_once)
        self._losses = backward(self._model, self._batches, self._config, position, execution, self._device, measure=True)
        if self._choices is not None:  # of the last stage, which has all there are
            choose(self._model, self._choices, training, Position(step=number, epoch=training.epochs), self.rows_at_once, self._device)
        self.update()

    def measured(self, work: Callable[[], None]) -> tuple[float, int | None]:
        """(seconds, most bytes) of the work."""
        watch = Peak(self._device)
        return self.timed(work), watch.bytes()

    def timed(self, work: Callable[[], None]) -> float:
        if self._must_stop():
            raise Disturbing("a run began on this machine, so the measurement was ended to leave it alone")
        began = time.monotonic()
        work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.monotonic() - began

    def check(self) -> None:
        """Raises NotFinite."""
        if not all(bool(loss.loss.isfinite()) for loss in self._losses):
            raise NotFinite("the loss of a step is not a finite number")

    def line_bytes(self) -> tuple[int, int]:
        """Bytes of a line of metrics, and of one of progress, in the journal."""
        values = step_values(self._losses, self._config.optimizer.muon_lr, self._optimizer.grad_norm, self._device)
        # As many numbers, of the usual length, as the loop's own.
        progress = dict.fromkeys(("step", "total_steps", "epoch", "step_time_s", "tokens_per_s", "eta_s", "tokens", "fill_ratio"), 1 / 3)
        at = time.time()
        row = Event(1000, at, Kind.METRICS, {"step": 1000, "epoch": 1 / 3, "values": values, "progress": progress})
        return len(encode(row)), len(encode(Event(1000, at, Kind.PROGRESS, {"progress": progress})))


def _is_enough(steps_s: list[float]) -> bool:
    return len(steps_s) >= WHOLE_STEPS or (len(steps_s) >= 3 and sum(steps_s) > WHOLE_S)


def _basis(whole_steps: int, rows: int, training: TrainingConfig) -> str:
    if whole_steps:
        return f"median of {whole_steps} whole step{'s' if whole_steps > 1 else ''}, not compiled"
    left_out = ", without the loss over candidates" if training.choice_weight else ""
    if rows == training.batch_size:
        return f"one pass over a whole batch, and one update, timed apart; not compiled{left_out}"
    return f"one pass over {rows} of a batch's {training.batch_size} rows, multiplied up, and one update; not compiled{left_out}"
