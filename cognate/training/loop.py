"""Training, top to bottom: load, restore, step, measure, listen, save, end.

`train` is one attempt at a run. It reads the run's directory, reports facts, and returns how it ended. Whatever kills
it, the next attempt goes on from the newest checkpoint, and every bit comes out as if nothing had happened: the data
order is a function of (seed, epoch), the randomness of a step of (seed, step), and all else is in the checkpoint.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cognate.config import RunConfig, TrainingConfig
from cognate.data.batches import TrainingBatches, validation_batches
from cognate.data.choices import ChoiceStream
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.curriculum import stage_for
from cognate.data.sources import SOURCES
from cognate.evaluation.items import Items
from cognate.evaluation.suite import sample_accuracies, sample_items
from cognate.events import Failure, Kind
from cognate.model import Cognate, Loss
from cognate.optimizer import MuGrokfast
from cognate.rundir import Control, Places, RunDir
from cognate.training import checkpoint
from cognate.training.average import WeightAverage
from cognate.training.checkpoint import Position
from cognate.training.choosing import choose
from cognate.training.execution import Execution, FiniteLosses, activation_dtype, parts, prepare
from cognate.training.measure import step_values, validate
from cognate.training.reporter import Reporter
from cognate.training.schedule import lr_scale


class DataChanged(RuntimeError):
    """The data of a resumed run are not those it was started on."""


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
    training = config.training
    environment = describe_environment(config, device)

    checkpoint.discard_unfinished(run)
    saved, refused = checkpoint.newest(run)
    for sentence in refused:
        reporter.warning(f"{sentence}; falling back to an older checkpoint")
    reporter.say(Kind.STARTED, **environment, resumed_from_step=saved.position.step if saved else None)
    if saved:  # told again: whoever wrote it may have died before saying so
        _tell_checkpoint(reporter, run, saved.path, saved.files)

    reporter.phase("loading_data")
    corpus = load_corpus(config, places.data_dir, places.cache_dir, *((saved.tokenizer, saved.data_files) if saved else ()))
    for sentence in corpus.warnings:
        reporter.warning(sentence)
    if saved and saved.data != corpus.fingerprint:
        raise DataChanged("the data are not those this run was started on: its place in them would mean nothing; launch a new run")
    batches = TrainingBatches(corpus, training, config.seed)
    held_out = validation_batches(corpus, training, config.data.validation_batches)
    samples = evaluation_samples(config, places, corpus)
    choices = ChoiceStream(corpus, training, config.seed) if training.choice_weight else None
    if choices is not None and not choices.count(training.epochs):
        reporter.warning("training.choice_weight has no effect: no dataset of the plan is multiple choice")
    steps_in = {epoch: math.ceil(batches.steps_in_epoch(epoch) / training.gradient_accumulation) for epoch in range(1, training.epochs + 1)}
    total_steps = min(sum(steps_in.values()), training.max_steps or sum(steps_in.values()))

    torch.manual_seed(config.seed)
    model = Cognate(config.model).to(device)
    model.compute_dtype = activation_dtype(config, device)
    optimizer = build_optimizer(model, config)
    peak_rates = [group["lr"] for group in optimizer.param_groups]
    position = Position()
    if saved:
        model.load_state_dict(saved.model)
        restore_optimizer(optimizer, saved.optimizer)
        position = saved.position
    average = WeightAverage(model, training.weight_ema, saved.average if saved else None) if training.weight_ema else None
    evaluated = average.in_place if average is not None else nullcontext
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model.train()
    reporter.phase("compiling")
    execution = prepare(
        model,
        lambda: batches.batch(position.epoch, 0),
        training,
        device,
        total_steps,
        saved.environment if saved else {},
        reporter.warning,
        rows_at_most,
    )
    environment |= execution.describe()
    if saved and (changed := _changes(saved.environment, environment)):
        reporter.warning(f"resumed under other conditions ({changed}); the result will be close, not bit-identical")
    reporter.say(
        Kind.PLAN,
        total_steps=total_steps,
        steps_per_epoch=list(steps_in.values()),
        total_params=parameters,
        tokenizer={"sha256": corpus.tokenizer.digest, "tokens": corpus.tokenizer.vocab_size},
        curriculum=corpus.curriculum.describe(),
        fill_ratio=batches.fill_ratio(position.epoch),
        **execution.describe(),
    )

    def save(serial: int | None = None, *, wait: bool = False) -> None:
        weights = average.state() if average is not None else None
        taken = checkpoint.snapshot(position, model, optimizer, corpus.tokenizer, environment, corpus.fingerprint, corpus.digests, weights)
        saving.begin(taken, serial)
        if wait:
            reporter.phase("checkpointing")
            saving.tell(wait=True)

    def fail(bad_step: int) -> Kind:
        saving.tell(wait=True)
        detail = f"the loss of step {bad_step} is not a finite number; checkpoints up to step {saving.saved_step or 0} are intact"
        reporter.say(Kind.FAILED, step=bad_step, reason=Failure.NONFINITE_LOSS, detail=detail)
        return Kind.FAILED

    if position.step == 0:  # the untrained model's score: what all later ones are compared with
        reporter.phase("evaluating")
        first = validate(model, held_out, device, execution.rows_at_once)
        reporter.metrics(0, 0.0, {"curriculum_stage": float(stage_for(1)), **first}, {})
    reporter.phase("training")
    saving = Saving(run, reporter, training.keep_checkpoints, position.step if saved else None)
    skipped_steps = optimizer.skipped_steps
    pace = Pace()
    finite_losses = FiniteLosses(device)

    while position.step < total_steps:
        saving.tell(wait=False)
        if (control := poll()) and control.command != "run":
            if (bad_step := finite_losses.bad_step(wait=True)) is not None:
                return fail(bad_step)
            if control.save and saving.begun_step != position.step and position.step > 0:
                save(control.serial, wait=True)
            saving.tell(wait=True)
            if control.command in ("pause", "stop"):
                ending = Kind.PAUSED if control.command == "pause" else Kind.STOPPED
                reporter.say(ending, step=position.step, serial=control.serial)
                return ending
            reporter.phase("training")

        # --- one step ---------------------------------------------------------------------------------------
        began = time.monotonic()
        step = position.step + 1
        ends_epoch = position.epoch_step + 1 == steps_in[position.epoch]
        is_last = step == total_steps
        is_logged = step == 1 or step % training.log_every_steps == 0 or ends_epoch or is_last
        scale = lr_scale(step, total_steps, training)
        for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
            group["lr"] = peak * scale
        torch.manual_seed(seed_of_step(config.seed, step))
        optimizer.zero_grad(set_to_none=True)
        losses = backward(model, batches, config, position, execution, device, measure=is_logged)
        chosen = choose(model, choices, training, position, execution.rows_at_once, device) if choices is not None else None
        if chosen is not None:
            losses = [replace(loss, loss=loss.loss + training.choice_weight * chosen.loss) for loss in losses]
        finite_losses.add(step, losses)
        bad_step = finite_losses.bad_step(wait=is_logged or step % training.checkpoint_every_steps == 0)
        finite = bad_step is None
        if finite:  # a step whose gradient is not finite the optimizer leaves out by itself
            optimizer.step()
            if average is not None:
                average.update(step)
        position.step, position.epoch_step, position.val_loss = step, position.epoch_step + 1, None
        tokens = len(losses) * training.batch_size * training.sequence_length
        position.tokens += tokens
        pace.took(time.monotonic() - began)
        position.seconds, position.epoch_seconds = position.seconds + pace.last, position.epoch_seconds + pace.last

        # --- what it was like -------------------------------------------------------------------------------
        if is_logged:
            skipped_steps = optimizer.skipped_steps  # waits for the device
        epoch = position.epoch - 1 + position.epoch_step / steps_in[position.epoch]
        progress = {
            "step": step,
            "total_steps": total_steps,
            "epoch": epoch,
            "step_time_s": pace.last,
            "tokens_per_s": tokens / pace.last,
            "eta_s": (total_steps - step) * pace.mean,
            "tokens": position.tokens,
            "fill_ratio": batches.fill_ratio(position.epoch),
            "skipped_steps": skipped_steps,
        }
        if bad_step is not None and bad_step != step:  # an earlier one, noticed late
            reporter.metrics(bad_step, epoch, {"loss": math.nan}, progress)
            return fail(bad_step)
        if is_logged or not finite:
            values = step_values(losses, peak_rates[0] * scale, optimizer.grad_norm if finite else None, device)
            if finite and (ends_epoch or is_last):
                reporter.phase("evaluating")
                with evaluated():
                    values |= validate(model, held_out, device, execution.rows_at_once)
                    values |= sample_accuracies(model, corpus.tokenizer, samples)
                position.val_loss = values.get("val_loss")
                values["curriculum_stage"] = float(stage_for(position.epoch))
            if ends_epoch:
                values["epoch_time_minutes"] = position.epoch_seconds / 60
            if is_last:
                values |= {"total_params": float(parameters), "training_time_hours": position.seconds / 3600}
            beside = {"loss_choice": float(chosen.loss), "choice_accuracy": float(chosen.accuracy)} if chosen is not None else {}
            reporter.metrics(step, epoch, values, {**progress, "qk_clips": optimizer.qk_clips, **beside})
        else:
            reporter.progress(progress)
        if not finite:
            return fail(step)

        # --- on to the next ---------------------------------------------------------------------------------
        if ends_epoch and not is_last:
            position.epoch, position.epoch_step, position.epoch_seconds = position.epoch + 1, 0, 0.0
        if step % training.checkpoint_every_steps == 0 or ends_epoch or is_last:
            save(wait=is_last)
            reporter.phase("training" if not is_last else "finalizing")

    reporter.say(Kind.FINISHED, step=position.step)
    return Kind.FINISHED


def evaluation_samples(config: RunConfig, places: Places, corpus: Corpus) -> list[Items]:
    """What an epoch ends with: a few held-out items of each real dataset that the run uses."""
    if config.evaluation.epoch_items == 0:
        return []
    used = [name for name in SOURCES if name in corpus.training]
    return sample_items(places.data_dir, used, config.evaluation.epoch_items, places.cache_dir)


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


class Saving:
    """The checkpoints of an attempt: begun one at a time, written beside training, told when complete."""

    def __init__(self, run: RunDir, reporter: Reporter, keep: int, saved_step: int | None) -> None:
        self._run, self._reporter = run, reporter
        self._writer = checkpoint.Writer(run, keep)
        self._serial: int | None = None
        self.begun_step = self.saved_step = saved_step

    def begin(self, taken: checkpoint.Snapshot, serial: int | None = None) -> None:
        """serial: of the command that asked for it"""
        self.tell(wait=True)
        self._reporter.sync()  # the rows that lead up to it first
        self._writer.start(taken)
        self._serial, self.begun_step = serial, taken.position.step

    def tell(self, *, wait: bool) -> None:
        """Report what has been written since; raises what went wrong with it."""
        if written := self._writer.collect(wait=wait):
            _tell_checkpoint(self._reporter, self._run, *written, self._serial)
            self.saved_step = self.begun_step


class Pace:
    """Seconds a step takes: the last one, and a mean that follows."""

    def __init__(self) -> None:
        self.last = 0.0
        self.mean = 0.0

    def took(self, seconds: float) -> None:
        self.mean = seconds if not self.mean else 0.9 * self.mean + 0.1 * seconds
        self.last = seconds


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
            loss = model.loss(part.tokens, part.targets, part.documents, measure=measure and index == last - 1, dropout=dropout)
            torch.autograd.backward(loss.loss * (share / (last - first)))
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
    return torch.split((training.dropout * repeats).to(device), execution.rows_at_once)


def _tell_checkpoint(reporter: Reporter, run: RunDir, path: Path, files: dict[str, Any], serial: int | None = None) -> None:
    kept = [step for step, _ in run.complete_checkpoints()]
    step = next(step for step, found in run.complete_checkpoints() if found == path)
    reporter.say(Kind.CHECKPOINT, step=step, name=path.name, files=files, kept_steps=kept, serial=serial)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{key} {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key])
