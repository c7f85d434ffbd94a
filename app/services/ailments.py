"""What can ail a run: the one table of kinds, thresholds and remedies. docs/health.md is printed from it; detectors.py finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Severity = Literal["warning", "critical"]


class Ailment(StrEnum):
    NOT_FALLING = "loss_not_falling"
    PLATEAU = "plateau"
    EXPLOSION = "explosion"
    NONFINITE = "nonfinite"
    OUT_OF_MEMORY = "out_of_memory"
    SLOW = "slow"
    GPU_IDLE = "low_gpu_utilisation"
    TOO_LITTLE_DATA = "too_little_data"
    STALLED = "stalled"


@dataclass(frozen=True)
class About:
    """threshold: from when on, and by which settings; over: until when; evidence: what comes with it; remedy: what to change"""

    severity: Severity
    what: str
    threshold: str
    over: str
    evidence: str
    remedy: str


ABOUT: Mapping[Ailment, About] = {
    Ailment.NOT_FALLING: About(
        "critical",
        "the loss is where the untrained model's was",
        "`health.not_falling_after_steps` after the warm-up, the median cross-entropy of the last 10 rows is not lower by "
        "`health.min_fall` than that of the first row",
        "it is",
        "the cross-entropy of the first row and now, with their steps",
        "The learning rates are far too high or too low: look at grad_norm, and launch again with optimizer.muon_lr, embedding_lr and "
        "adamw_lr three times lower (a loss that jumps) or higher (one that stands still). What the model reads "
        "may be at fault too: look at the plan's datasets and at fill_ratio.",
    ),
    Ailment.PLATEAU: About(
        "warning",
        "the loss has stopped falling",
        "the later half of the last `health.plateau_steps` (and at least 20 rows) is surely (3 standard errors) not lower than the "
        "earlier half by `health.plateau_min_fall`; never across the border of two stages of the curriculum",
        "it falls again, or the next stage began",
        "the steps, the means of both halves, the fall between them and its standard error, as shares",
        "If val_loss rises meanwhile, stop: the best checkpoint is kept. Else fork with lower learning rates, or let their decay begin "
        "earlier (training.decay_fraction); early in a run raise them, or optimizer.grokfast_lambda.",
    ),
    Ailment.EXPLOSION: About(
        "critical",
        "the loss has jumped up",
        "a loss `health.explosion_deviations` deviations above the median of the last 50 rows, or of the last 5 where that is lower, and "
        "`health.explosion_ratio` times it. The deviation is told by the rises from row to row (five in six changes of noise are below "
        "1.4 deviations), so a falling loss has none. "
        "Rows of the same stage of the curriculum are compared, from the 7th on; with fewer than 20 before it, n, the loss must be 20/n "
        "times as many deviations above",
        "10 rows in a row are not; or the next stage of the curriculum began",
        "the step, its loss, the median and the deviation of the rows before",
        "If it does not come back by itself, stop and fork from a checkpoint before it with optimizer.muon_lr and embedding_lr halved, "
        "training.gradient_clip lower (0.5), or a longer training.warmup_steps.",
    ),
    Ailment.NONFINITE: About(
        "critical",
        "a loss or gradient is not a finite number",
        "a NaN or an infinity in loss, loss_ce, val_loss or grad_norm, or a step that the optimizer left out",
        "10 rows in a row are finite and no step was left out",
        "the step, the metrics, how many steps were left out",
        "A loss that is no number fails the run; the last checkpoint is whole. Fork from it with lower learning rates or "
        "training.gradient_clip; with training.precision bf16, try fp32. A single step that was left out needs nothing.",
    ),
    Ailment.OUT_OF_MEMORY: About(
        "warning",
        "the memory of the GPU or of the machine did not suffice",
        "a worker fails with `oom_cuda` or `oom_host`; with `health.on_out_of_memory = halve` its run goes on from the newest checkpoint "
        "with half the rows of a batch at once, down to one, with the same batches and optimizer steps",
        "the run is past the step at which it failed",
        "`oom_cuda` or `oom_host`, the step and phase, the rows at once until then and from now on",
        "Nothing where it goes on by itself. Where it does not: shorten training.sequence_length, set model.bptt to last, or free memory "
        "that others use; training.micro_batch_size says from the start how many rows go at once.",
    ),
    Ailment.SLOW: About(
        "warning",
        "steps take longer than they did",
        "the median step of a minute (at least 5 rows), or the steps of an epoch on average, take `health.slow_ratio` times the median "
        "of the earlier ones; minutes are compared within one life of a worker",
        "they do not, or the worker ended",
        "seconds a step now and before, and whether of an epoch or a stretch of a minute",
        "Something else uses the machine: look for other runs and processes, a GPU that is hot, a disk that is busy. Pause and resume on "
        "another device loses nothing.",
    ),
    Ailment.GPU_IDLE: About(
        "warning",
        "the GPU is idle for much of the time",
        "busy less than `health.min_gpu_utilisation` of the last two minutes of training, as NVML counts",
        "it is busier, or the worker ended",
        "the share of time it was busy, 0..1",
        "Give it more at once: a larger training.batch_size (or micro_batch_size), training.compile on. If the CPU is busy with something "
        "else, end that.",
    ),
    Ailment.TOO_LITTLE_DATA: About(
        "warning",
        "there are few data for this model, or they are repeated often",
        "an epoch has fewer than `health.min_tokens_per_parameter` tokens a parameter, or the run makes more than "
        "`health.max_passes` passes (arXiv:2305.16264: 4 are as good as new data, beyond 16 there is little left to learn)",
        "a later plan has enough",
        "tokens an epoch, parameters, tokens a parameter, passes",
        "Add datasets (data.datasets empty takes all that are there), train for fewer training.epochs, or take a smaller model.",
    ),
    Ailment.STALLED: About(
        "critical",
        "the worker says nothing",
        "no word for `COGNATE_STALL_AFTER_S` seconds; with `COGNATE_ON_STALL=restart` it is replaced, or ended where its run is to pause",
        "it speaks again, or ended",
        "seconds of silence, and the last step",
        "Look at the end of the worker's log. Kill ends the run for good; a fork goes on from its newest checkpoint. To have silent "
        "workers replaced instead, start the service with COGNATE_ON_STALL=restart.",
    ),
}  # fmt: skip

# They are a worker's, not its run's: over when it ends.
OF_A_WORKER = frozenset({Ailment.SLOW, Ailment.GPU_IDLE, Ailment.STALLED})
