"""The 37 metrics, declared once.

Database columns, API, charts, documentation and mirrors are derived from METRICS; a value that was not
measured is absent, never 0. training/measure.py turns tensors into these values.

Source: docs/model.md section 4, which numbers them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from cognate.config import DatasetName


class Cadence(StrEnum):
    """When a metric is measured: at a logged step, at the end of an epoch, or once at the end."""

    STEP = "step"
    EPOCH = "epoch"
    FINAL = "final"


@dataclass(frozen=True)
class Metric:
    key: str
    label: str
    unit: str
    cadence: Cadence
    group: str
    meaning: str


def _accuracy(name: str) -> Metric:
    kind = {"mbpp": "pass@1 on its tests", "codexglue": "exact match of the code", "wikitext": "next-token accuracy"}
    meaning = f"{kind.get(name, 'share of held-out answers that are right')} on a fixed held-out sample of {name}"
    return Metric(f"accuracy_{name}", f"Accuracy: {name}", "0..1", Cadence.EPOCH, "accuracy", meaning)


STEP, EPOCH, FINAL = Cadence.STEP, Cadence.EPOCH, Cadence.FINAL

METRICS: tuple[Metric, ...] = (
    Metric("loss", "Loss", "nats/token", STEP, "loss", "what is minimised: loss_ce + loss_act + loss_gate, and what training.choice_weight adds"),
    Metric("loss_ce", "Cross-entropy", "nats/token", STEP, "loss", "weighted cross-entropy over the recursions"),
    Metric("loss_act", "Halting loss", "nats/token", STEP, "loss", "binary cross-entropy of the halting head"),
    Metric("loss_gate", "Gate loss", "nats/token", STEP, "loss", "minus the weighted entropy of the memory gates"),
    Metric("perplexity", "Perplexity", "ratio", STEP, "loss", "exp of the last recursion's cross-entropy"),
    Metric("learning_rate", "Learning rate", "1", STEP, "optimizer", "the matrices' rate that the step really used"),
    Metric("grad_norm", "Gradient norm", "1", STEP, "optimizer", "global L2 norm before clipping"),
    Metric("act_avg_halting_steps", "Halting steps", "recursions", STEP, "halting", "mean recursions a token would take before it halts, 1..cap"),
    Metric("act_halt_prob_mean", "Halting probability, mean", "0..1", STEP, "halting", "mean over tokens and recursions"),
    Metric("act_halt_prob_std", "Halting probability, spread", "0..1", STEP, "halting", "standard deviation over tokens and recursions"),
    Metric("ltm_memory_usage", "Memory usage", "0..1", STEP, "memory", "effective rank of the memory at the rows' ends over its key width"),
    Metric("ltm_surprise_rate", "Surprise rate", "0..1", STEP, "memory", "share of tokens whose value the memory missed by more than the threshold"),
    Metric("gpu_memory_allocated", "GPU memory allocated", "MiB", STEP, "device", "memory held by tensors; absent without a GPU"),
    Metric("gpu_memory_reserved", "GPU memory reserved", "MiB", STEP, "device", "memory held by the allocator; absent without a GPU"),
    Metric("val_loss", "Validation loss", "nats/token", EPOCH, "loss", "cross-entropy of the last recursion on held-out text"),
    Metric("val_perplexity", "Validation perplexity", "ratio", EPOCH, "loss", "exp of val_loss"),
    Metric("curriculum_stage", "Curriculum stage", "1..3", EPOCH, "data", "stage of the curriculum the epoch belonged to"),
    Metric("epoch_time_minutes", "Epoch time", "minutes", EPOCH, "time", "training time of the epoch, pauses excluded"),
    *(_accuracy(name) for name in get_args(DatasetName)),
    Metric("total_params", "Parameters", "count", FINAL, "final", "trainable parameters, counted"),
    Metric("training_time_hours", "Training time", "hours", FINAL, "time", "hours of training, pauses excluded"),
    Metric("diversity_avg_halting_steps", "Diversity: halting steps", "recursions", FINAL, "diversity", "largest minus smallest mean halting steps among the group's models"),
    Metric("diversity_ltm_usage", "Diversity: memory usage", "0..1", FINAL, "diversity", "largest minus smallest memory usage among the group's models"),
    Metric("diversity_inference_time_ms", "Diversity: inference time", "ms", FINAL, "diversity", "largest minus smallest median time per token among the group's models"),
)  # fmt: skip

# Between which losses a specialist is expected to be at the end of an epoch, nats/token (the training report's time line).
EXPECTED_LOSS: dict[int, tuple[float, float]] = {1: (8.0, 10.0), 3: (5.0, 7.0), 5: (3.0, 4.0), 10: (2.0, 2.5)}

KEYS: tuple[str, ...] = tuple(metric.key for metric in METRICS)
# Two equal runs differ in these only: they measure the machine and the clock, not the model.
WALL_CLOCK_KEYS = frozenset(metric.key for metric in METRICS if metric.group in ("time", "device"))
