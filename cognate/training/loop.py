"""Training, top to bottom: load, restore, step, measure, listen, save, end.

`train` is one attempt at a run. It reads the run's directory, reports facts, and returns how it ended. Whatever kills
it, the next attempt goes on from the newest checkpoint, and every bit comes out as if nothing had happened: the data
order is a function of (seed, epoch), the randomness of a step of (seed, step), and all else is in the checkpoint.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cognate.config import RunConfig, TrainingConfig
from cognate.data.batches import TrainingBatches
from cognate.data.curriculum import stage_for
from cognate.evaluation.suite import sample_accuracies
from cognate.evaluation.writing import write_on
from cognate.events import Failure, Kind
from cognate.model import Cognate, Loss
from cognate.optimizer import MuGrokfast
from cognate.rundir import Control, Places, RunDir, read_json
from cognate.training import checkpoint
from cognate.training.average import WeightAverage
from cognate.training.checkpoint import Position, Saved
from cognate.training.choosing import Chosen, choose, try_one
from cognate.training.execution import Execution, FiniteLosses, activation_dtype, parts, prepare, strictly
from cognate.training.inputs import Data, load_data
from cognate.training.measure import step_values, unlisted_values, validate
from cognate.training.pace import Pace
from cognate.training.reporter import Reporter
from cognate.training.saving import Saving, tell_checkpoint
from cognate.training.schedule import lr_scale
from cognate.transfer import to_device


def train(
    run: RunDir,
    reporter: Reporter,
    poll: Callable[[], Control | None],
    places: Places,
    device: torch.device,
    rows_at_most: int | None = None,
) -> Kind:
    """Train `run` until it is finished, told to end, or cannot go on; the kind of the last event reported.

    rows_at_most: of a batch, at once; the run ran out of memory with more
    """
    config = run.config()
    environment = describe_environment(config, device)
    saved = find_checkpoint(run, reporter, environment)
    data = load_data(config, places, saved, reporter)
    training = Training(run, reporter, config, data, device, environment, saved)
    before, is_fork = (saved.environment, saved.config != read_json(run.config_file)) if saved else ({}, False)
    del saved  # its tensors are as large as the model and its optimizer
    training.begin(before, is_fork, rows_at_most)
    while not training.is_finished:
        training.saving.tell(wait=False)
        if (control := poll()) and control.command != "run" and (ending := training.obey(control)):
            return ending
        done = training.step()
        training.report(done)
        if done.bad_step is not None:
            return training.fail(done.bad_step)
        training.move_on(done)
    reporter.say(Kind.FINISHED, step=training.position.step)
    return Kind.FINISHED


def find_checkpoint(run: RunDir, reporter: Reporter, environment: dict[str, Any]) -> Saved | None:
    """The newest whole checkpoint; says that the attempt has started, and from where."""
    checkpoint.discard_unfinished(run)
    saved, refused = checkpoint.newest(run)
    for sentence in refused:
        reporter.warning(f"{sentence}; falling back to an older checkpoint")
    reporter.say(Kind.STARTED, **environment, resumed_from_step=saved.position.step if saved else None)
    if saved:  # told again: whoever wrote it may have died before saying so
        tell_checkpoint(reporter, run, saved.path, saved.files)
    return saved


@dataclass(frozen=True)
class Step:
    """A step that was done. bad_step: whose loss is known to be no finite number, this one's or an earlier one's"""

    number: int
    is_logged: bool
    ends_epoch: bool
    is_last: bool
    learning_rate: float
    losses: Sequence[Loss]
    chosen: Chosen | None
    bad_step: int | None


class Training:
    """An attempt at work: the model and its optimizer, where they are in the data, and what is saved of them."""

    def __init__(
        self,
        run: RunDir,
        reporter: Reporter,
        config: RunConfig,
        data: Data,
        device: torch.device,
        environment: dict[str, Any],
        saved: Saved | None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.reporter, self.config, self.data, self.device, self.environment = reporter, config, data, device, environment
        self.model = Cognate(config.model).to(device)
        self.model.compute_dtype = activation_dtype(config, device)
        self.optimizer = build_optimizer(self.model, config)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.position = Position()
        if saved:
            self.model.load_state_dict(saved.model)
            restore_optimizer(self.optimizer, saved.optimizer)
            self.position = saved.position
            self._leave_epoch_that_is_done()  # a run's last step stays in its epoch, and a fork may have more of them
        decay = config.training.weight_ema
        self.average = WeightAverage(self.model, decay, saved.average if saved else None) if decay else None
        self.saving = Saving(run, reporter, config.training.keep_checkpoints, self.position.step if saved else None)
        self.skipped_steps = self.optimizer.skipped_steps
        self.pace = Pace()
        self.finite_losses = FiniteLosses(device)
        self.total_params = sum(parameter.numel() for parameter in self.model.parameters())
        self.model.train()

    @property
    def is_finished(self) -> bool:
        return self.position.step >= self.data.total_steps

    @property
    def passes(self) -> float:
        """Epochs done, with their fraction."""
        return self.position.epoch - 1 + self.position.epoch_step / self.data.steps_in[self.position.epoch]

    # --- before the first step ------------------------------------------------------------------------------

    def begin(self, before: dict[str, Any], is_fork: bool, rows_at_most: int | None) -> None:
        """Decide how steps are carried out, tell the plan, and measure the untrained model.

        before: the environment of the checkpoint gone on from, or empty; is_fork: that was written under another configuration
        """
        data = self.data
        self.reporter.phase("compiling")
        sample = partial(data.batches.batch, self.position.epoch, 0)
        known = {**before, "compiled": None} if is_fork else before  # a fork may ask for another, and be long enough for it
        self.execution = prepare(
            self.model, sample, self.config.training, self.device, data.total_steps, known, self.reporter.warning, rows_at_most,
            beside=self._try_choosing,
        )  # fmt: skip
        self.environment |= self.execution.describe()
        if changed := _changes(before, self.environment):
            self.reporter.warning(f"goes on under other conditions ({changed}); the result will be close, not bit-identical")
        self.reporter.say(
            Kind.PLAN,
            total_steps=data.total_steps,
            steps_per_epoch=list(data.steps_in.values()),
            total_params=self.total_params,
            tokenizer={"sha256": data.corpus.tokenizer.digest, "tokens": data.corpus.tokenizer.vocab_size},
            curriculum=data.corpus.curriculum.describe(),
            fill_ratio=data.batches.fill_ratio(self.position.epoch),
            **self.execution.describe(),
        )
        if self.position.step == 0:  # what all later scores are compared with
            self.reporter.phase("evaluating")
            first = validate(self.model, data.held_out, self.device, self.execution.rows_at_once)
            self.reporter.metrics(0, 0.0, {"curriculum_stage": float(stage_for(1)), **first}, {})
        self.reporter.phase("training")

    # --- one step -------------------------------------------------------------------------------------------

    def step(self) -> Step:
        """One update of the weights; the place in the data moves behind it."""
        began = time.monotonic()
        config, position, optimizer = self.config.training, self.position, self.optimizer
        step = position.step + 1
        ends_epoch = position.epoch_step + 1 == self.data.steps_in[position.epoch]
        is_last = step == self.data.total_steps
        is_logged = step == 1 or step % config.log_every_steps == 0 or ends_epoch or is_last
        scale = lr_scale(step, self.data.total_steps, config)
        for group, peak in zip(optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * scale
        torch.manual_seed(seed_of_step(self.config.seed, step))
        self.model.zero_grad(set_to_none=True)  # torch's optimizers import its compiler for this
        losses, chosen = self._add_gradients(measure=is_logged)
        self.finite_losses.add(step, losses)
        bad_step = self.finite_losses.bad_step(wait=is_logged or step % config.checkpoint_every_steps == 0)
        if bad_step is None:  # a step whose gradient is not finite the optimizer leaves out by itself
            optimizer.step()
            if self.average is not None:
                self.average.update(step)
        if is_logged:
            self.skipped_steps = optimizer.skipped_steps  # waits for the device
        tokens = len(losses) * config.batch_size * config.sequence_length
        position.step, position.epoch_step, position.val_loss = step, position.epoch_step + 1, None
        position.tokens += tokens
        seconds = time.monotonic() - began
        self.pace.took(seconds, tokens, self.finite_losses.ahead)
        position.seconds, position.epoch_seconds = position.seconds + seconds, position.epoch_seconds + seconds
        return Step(step, is_logged, ends_epoch, is_last, self.peak_rates[0] * scale, losses, chosen, bad_step)

    def _add_gradients(self, *, measure: bool) -> tuple[list[Loss], Chosen | None]:
        execution = self.execution
        with strictly(execution.is_strict):
            losses = backward(self.model, self.data.batches, self.config, self.position, execution, self.device, measure=measure)
            chosen = self._choose()
        if chosen is not None:
            weight = self.config.training.choice_weight
            losses = [replace(loss, loss=loss.loss + weight * chosen.loss) for loss in losses]
        return losses, chosen

    def _choose(self) -> Chosen | None:
        if self.data.choices is None:
            return None
        return choose(self.model, self.data.choices, self.config.training, self.position, self.execution.rows_at_once, self.device)

    def _try_choosing(self) -> None:
        if self.data.choices is not None:
            try_one(self.model, self.data.choices, self.position, self.device)

    # --- what it was like -----------------------------------------------------------------------------------

    def report(self, done: Step) -> None:
        """A row of metrics where one is due, else only where training is."""
        progress = self._progress(done)
        if done.bad_step is not None and done.bad_step != done.number:  # an earlier one, noticed late
            self.reporter.metrics(done.bad_step, progress["epoch"], {"loss": math.nan}, progress)
        elif done.is_logged or done.bad_step is not None:
            self.reporter.metrics(done.number, progress["epoch"], self._measure(done), {**progress, **self._beside(done)})
        else:
            self.reporter.progress(progress)
        if done.is_logged:
            self.pace.begin_anew()

    def _progress(self, done: Step) -> dict[str, float]:
        position = self.position
        return {
            "step": done.number,
            "total_steps": self.data.total_steps,
            "epoch": self.passes,
            "step_time_s": self.pace.step_s,
            "tokens_per_s": self.pace.tokens_per_s,
            "eta_s": (self.data.total_steps - done.number) * self.pace.mean,
            "tokens": position.tokens,
            "fill_ratio": self.data.batches.fill_ratio(position.epoch),
            "skipped_steps": self.skipped_steps,
        }

    def _measure(self, done: Step) -> dict[str, float]:
        """Metric values of a step; at an epoch's end also those on held-out data, which the checkpoint is judged by."""
        is_finite = done.bad_step is None
        values = step_values(done.losses, done.learning_rate, self.optimizer.grad_norm if is_finite else None, self.device)
        if is_finite and (done.ends_epoch or done.is_last):
            self.reporter.phase("evaluating")
            with self.average.in_place() if self.average is not None else nullcontext():
                values |= validate(self.model, self.data.held_out, self.device, self.execution.rows_at_once)
                values |= sample_accuracies(self.model, self.data.corpus.tokenizer, self.data.samples)
                self._say_what_it_writes()
            self.position.val_loss = values.get("val_loss")
            values["curriculum_stage"] = float(stage_for(self.position.epoch))
        if done.ends_epoch:
            values["epoch_time_minutes"] = self.position.epoch_seconds / 60
        if done.is_last:
            values |= {"total_params": float(self.total_params), "training_time_hours": self.position.seconds / 3600}
        return values

    def _say_what_it_writes(self) -> None:
        prompts = self.data.prompts
        texts = write_on(self.model, self.data.corpus.tokenizer, prompts)
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            self.reporter.say(Kind.SAMPLE, step=self.position.step, epoch=self.passes, place=place, **vars(prompt), text=text)

    def _beside(self, done: Step) -> dict[str, float]:
        """What a row tells besides its metrics, which are fixed."""
        beside = {"qk_clips": float(self.optimizer.qk_clips), **unlisted_values(done.losses)}
        if done.chosen is not None:
            beside |= {"loss_choice": float(done.chosen.loss), "choice_accuracy": float(done.chosen.accuracy)}
        return beside

    # --- on to the next, or to an end -----------------------------------------------------------------------

    def move_on(self, done: Step) -> None:
        """Into the next epoch where one has ended, and save where that is due."""
        if not done.is_last:
            self._leave_epoch_that_is_done()
        if done.number % self.config.training.checkpoint_every_steps == 0 or done.ends_epoch or done.is_last:
            self.save(wait=done.is_last)
            self.reporter.phase("training" if not done.is_last else "finalizing")

    def _leave_epoch_that_is_done(self) -> None:
        position, steps_in = self.position, self.data.steps_in
        if position.epoch + 1 in steps_in and position.epoch_step >= steps_in[position.epoch]:
            position.epoch, position.epoch_step, position.epoch_seconds = position.epoch + 1, 0, 0.0

    def obey(self, control: Control) -> Kind | None:
        """Carry out a command; how the attempt ends by it, if it does."""
        if (bad_step := self.finite_losses.bad_step(wait=True)) is not None:
            return self.fail(bad_step)
        if control.save and self.saving.begun_step != self.position.step and self.position.step > 0:
            self.save(control.serial, wait=True)
        self.saving.tell(wait=True)
        if control.command in ("pause", "stop"):
            ending = Kind.PAUSED if control.command == "pause" else Kind.STOPPED
            self.reporter.say(ending, step=self.position.step, serial=control.serial)
            return ending
        self.reporter.phase("training")
        return None

    def fail(self, bad_step: int) -> Kind:
        self.saving.tell(wait=True)
        detail = f"the loss of step {bad_step} is not a finite number; checkpoints up to step {self.saving.saved_step or 0} are intact"
        self.reporter.say(Kind.FAILED, step=bad_step, reason=Failure.NONFINITE_LOSS, detail=detail)
        return Kind.FAILED

    def save(self, serial: int | None = None, *, wait: bool = False) -> None:
        """serial: of the command that asked for it"""
        corpus = self.data.corpus
        weights = self.average.state() if self.average is not None else None
        taken = checkpoint.snapshot(
            self.position, self.model, self.optimizer, corpus.tokenizer, self.environment, corpus.fingerprint, corpus.digests, weights
        )
        self.saving.begin(taken, serial)
        if wait:
            self.reporter.phase("checkpointing")
            self.saving.tell(wait=True)


def build_optimizer(model: Cognate, config: RunConfig) -> MuGrokfast:
    return MuGrokfast(model.named_parameters(), gradient_clip=config.training.gradient_clip, **config.optimizer.model_dump())


def restore_optimizer(optimizer: MuGrokfast, state: dict[str, Any]) -> None:
    """Take up the tensors and counters of `state`, under the settings that `optimizer` was made with: a fork may have changed them."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)


def seed_of_step(seed: int, step: int) -> int:
    """The seed of everything random in one step; so a step is the same whatever came before it."""
    return (seed * 0x9E3779B97F4A7C15 + step) % 2**63


def describe_environment(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """What a bit-identical resume depends on besides the checkpoint."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(activation_dtype(config, device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def backward(
    model: Cognate,
    batches: TrainingBatches,
    config: RunConfig,
    position: Position,
    execution: Execution,
    device: torch.device,
    *,
    measure: bool,
) -> list[Loss]:
    """Accumulate the gradient of the step at `position`; the loss of each of its batches.

    The last step of an epoch has the batches that are left, so that none goes untrained.
    """
    losses = []
    first = position.epoch_step * config.training.gradient_accumulation
    last = min(first + config.training.gradient_accumulation, batches.steps_in_epoch(position.epoch))
    for index in range(first, last):
        batch = batches.batch(position.epoch, index)
        rates = _dropout(batches, config.training, position.epoch, index, execution, device)
        pieces = []
        for (part, share), dropout in zip(parts(batch, execution.rows_at_once, device), rates, strict=False):
            of_step, is_measured = share / (last - first), measure and index == last - 1
            loss = model.loss(part.tokens, part.targets, part.documents, measure=is_measured, dropout=dropout, share=of_step)
            torch.autograd.backward(loss.loss * of_step)
            pieces.append((loss, share))
        losses.append(Loss.mean(pieces))
    return losses


def _dropout(
    batches: TrainingBatches, training: TrainingConfig, epoch: int, index: int, execution: Execution, device: torch.device
) -> Iterable[Tensor | None]:
    """Each part's rates, [row, time]; one for every token, 0 while it is new, so that what is compiled for one step fits all."""
    if not training.dropout:
        return itertools.repeat(None)
    repeats = batches.times_seen(epoch, index) >= training.dropout_from
    rates = training.dropout * repeats
    return torch.split(to_device(rates, device), execution.rows_at_once)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{key} {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key])
