"""The part of a step that compares candidates (data/choices.py): its gradient is added to the one of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cognate.config import TrainingConfig
from cognate.data.choices import Choices, ChoiceStream, choice_loss
from cognate.model import Cognate
from cognate.training.checkpoint import Position
from cognate.transfer import to_device


@dataclass(frozen=True)
class Chosen:
    """Of a step's multiple-choice problems; scalars. loss: nats, detached and unweighted; accuracy: 0..1"""

    loss: Tensor
    accuracy: Tensor


def choose(
    model: Cognate, choices: ChoiceStream, training: TrainingConfig, position: Position, rows: int, device: torch.device
) -> Chosen | None:
    """Add the gradient of the candidates' loss, weighted, for the step at `position`; None where its epoch has no such problems.

    rows: candidates that go through the model at once, at most
    """
    drawn = choices.draw(position.epoch, position.step + 1)
    pieces = []
    for some in choices.batches(drawn, rows):
        share = len(some.correct) / len(drawn)
        pieces.append(_pass(model, some, rows, training.choice_weight * share, device) * share)
    return Chosen(*torch.stack(pieces).sum(0)) if pieces else None


def try_one(model: Cognate, choices: ChoiceStream, position: Position, device: torch.device) -> None:
    """The passes of one problem, a candidate at a time, for what they may fail with."""
    for some in choices.batches(choices.draw(position.epoch, position.step + 1)[:1], rows=1):
        _pass(model, some, 1, 0.0, device)


def _pass(model: Cognate, some: Choices, rows: int, weight: float, device: torch.device) -> Tensor:
    """Add the weighted gradient of some problems; their (loss, accuracy), [2]."""
    tokens = to_device(some.tokens, device)
    if len(tokens) <= rows:
        loss, accuracy = choice_loss(model.sequence_nats(tokens, some.targets), some)
        torch.autograd.backward(loss * weight)
        return torch.stack([loss.detach(), accuracy])
    # One problem with more candidates than fit. The loss needs all of them, so they are read without a gradient first; then each
    # part is read again, with the loss's slope at its rows. Nothing random is drawn in between, so the sum is the same gradient.
    parts = list(zip(torch.split(tokens, rows), torch.split(some.targets, rows), strict=True))
    with torch.no_grad():
        nats = torch.cat([model.sequence_nats(*part) for part in parts])  # [candidate]
    loss, accuracy = choice_loss(nats.requires_grad_(), some)
    (slopes,) = torch.autograd.grad(loss * weight, nats)
    for part, slope in zip(parts, torch.split(slopes, rows), strict=True):
        torch.autograd.backward(model.sequence_nats(*part), slope)
    return torch.stack([loss.detach(), accuracy])
