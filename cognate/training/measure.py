"""From the tensors of a step to metric values: the only place where a metric gets its number.

Everything here waits for the device, so it is called at logged steps only. What was not measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from cognate.data.batches import Batch
from cognate.metrics import KEYS
from cognate.model import Cognate, Loss
from cognate.training.execution import parts

MIB = 1024 * 1024


def step_values(losses: Sequence[Loss], learning_rate: float, grad_norm: Tensor | float | None, device: torch.device) -> dict[str, float]:
    """Metric values of one step; `losses` are those of its accumulated batches, the last one with measurements."""
    values = {name: _mean([getattr(loss, name) for loss in losses]) for name in ("loss", "loss_ce", "loss_act", "loss_gate")}
    values["perplexity"] = exp(_mean([loss.ce_last for loss in losses]))
    values["learning_rate"] = learning_rate
    if grad_norm is not None:
        values["grad_norm"] = float(grad_norm)
    values |= {key: value for key, value in _measurements(losses).items() if key in KEYS}
    if device.type == "cuda":
        values["gpu_memory_allocated"] = torch.cuda.memory_allocated(device) / MIB
        values["gpu_memory_reserved"] = torch.cuda.memory_reserved(device) / MIB
    return values


def unlisted_values(losses: Sequence[Loss]) -> dict[str, float]:
    """What was measured besides the 37: the gates' mean and entropy."""
    return {name: value for name, value in _measurements(losses).items() if name not in KEYS}


def validate(model: Cognate, batches: Iterable[Batch], device: torch.device, rows: int | None = None) -> dict[str, float]:
    """Cross-entropy of the last recursion over held-out text, weighted by token. rows: of a batch, at once; None: all"""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        for part, _ in parts(batch, rows or len(batch.tokens), device):
            ce_sum, targets = model.validation_loss(part.tokens, part.targets, part.documents)
            total, count = total + float(ce_sum), count + int(targets)
    model.train(was_training)
    if not count:
        return {}
    return {"val_loss": total / count, "val_perplexity": exp(total / count)}


def exp(nats: float) -> float:
    """e**nats, infinite where a float cannot hold it."""
    return math.exp(nats) if not nats > 700 else math.inf


def _measurements(losses: Sequence[Loss]) -> dict[str, float]:
    measured = losses[-1].measurements
    if measured is None:
        return {}
    named = {field.name: getattr(measured, field.name) for field in fields(measured)}
    return {name: float(value) for name, value in named.items() if value is not None}


def _mean(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.detach() for tensor in tensors]).mean())
