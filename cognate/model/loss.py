"""The training loss, as `Cognate.loss` returns it: where it looks, what it weighs, and what is measured beside it.

    loss = loss_ce + loss_act + loss_gate

Every mean is over counted targets, so neither padding nor the way documents are packed changes it.

Source: docs/model.md section 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cognate.config import ModelConfig
from cognate.model.act import HaltingHead, halting_depths
from cognate.model.mag import Reading
from cognate.model.memory import usage as usage_of
from cognate.transfer import to_device

NOT_COUNTED = -100  # a target that is not scored: padding, a masked prompt, a document's last token


@dataclass(frozen=True)
class Measurements:
    """The step metrics that only the model can see; scalars, None where a part is switched off. metrics.py has their units."""

    act_avg_halting_steps: Tensor | None
    act_halt_prob_mean: Tensor | None
    act_halt_prob_std: Tensor | None
    ltm_memory_usage: Tensor | None
    ltm_surprise_rate: Tensor | None
    gate_mean: Tensor | None
    gate_entropy: Tensor | None

    @staticmethod
    def mean(pieces: Sequence[tuple[Measurements | None, float]]) -> Measurements | None:
        """Of a batch from those of its parts, each with its share; parts that were not measured do not count."""
        measured = [(vars(piece), share) for piece, share in pieces if piece is not None]
        if not measured:
            return None
        total = sum(share for _, share in measured)

        def of(name: str) -> Tensor | None:
            known = [values[name] * (share / total) for values, share in measured if values[name] is not None]
            return torch.stack(known).sum() if known else None

        return Measurements(**{name: of(name) for name in measured[0][0]})


@dataclass(frozen=True)
class Loss:
    """loss carries the gradient; its parts, and the mean cross-entropy of the last recursion, are detached. Nats per token."""

    loss: Tensor
    loss_ce: Tensor
    loss_act: Tensor
    loss_gate: Tensor
    ce_last: Tensor
    measurements: Measurements | None

    @staticmethod
    def mean(pieces: Sequence[tuple[Loss, float]]) -> Loss:
        """The detached loss of a batch from those of its parts, each with its share of the counted targets."""
        if len(pieces) == 1:
            return replace(pieces[0][0], loss=pieces[0][0].loss.detach())
        names = ("loss", "loss_ce", "loss_act", "loss_gate", "ce_last")
        values = {name: torch.stack([getattr(piece, name).detach() * share for piece, share in pieces]).sum() for name in names}
        return Loss(**values, measurements=Measurements.mean([(piece.measurements, share) for piece, share in pieces]))


class Made(NamedTuple):
    """What a loss is made of that torch.compile can make; losses and ce_last: [], halting_...: [recursion, chosen]"""

    loss_ce: Tensor
    loss_act: Tensor
    loss_gate: Tensor
    ce_last: Tensor
    halting_logits: Tensor | None
    halting_targets: Tensor | None
    readings: list[Reading]


@dataclass(frozen=True)
class Places:
    """Positions in the flattened batch, and the weight of each in a mean over counted tokens: their sum is 1, or 0 without any.

    scored: of the last recursion's losses, [scored], None for all; chosen: of the earlier ones' and of halting, [chosen]
    choice: the chosen ones as places in `scored`
    """

    scored: Tensor | None
    scored_weights: Tensor
    choice: Tensor
    chosen: Tensor
    chosen_weights: Tensor


def places_of(counted: Tensor, fraction: float | None, *, is_static: bool) -> Places:
    """Where the losses look: at counted tokens, or at all, the others weighted 0, where shapes must not vary and nobody should
    wait to learn how many there are.

    counted:  bool [batch, time]
    fraction: how many of them early recursions are scored on, drawn at random; None: all, in order
    """
    counted, share = counted.flatten(), 1.0 if fraction is None else fraction
    # Of all places and on the CPU, so that whoever draws draws the same ones.
    order = torch.arange(len(counted), device="cpu") if fraction is None else torch.randperm(len(counted), device="cpu")
    order = to_device(order, counted.device)
    if not is_static:
        scored = counted.nonzero()[:, 0]
        chosen = order[counted[order]][: math.ceil(share * len(scored))]
        return Places(scored, shares(counted[scored]), (counted.cumsum(0) - 1)[chosen], chosen, shares(counted[chosen]))
    if fraction is not None:  # the counted ones first
        order = order[counted[order].logical_not().byte().argsort(stable=True)]
    chosen = order[: math.ceil(share * len(counted))]
    is_drawn = torch.arange(len(chosen), device=counted.device) < (share * counted.sum(dtype=torch.float64)).ceil()
    return Places(None, shares(counted), chosen, chosen, shares(counted[chosen] & (is_drawn | (fraction is None))))


def is_counted(targets: Tensor) -> Tensor:
    """Whether a target is scored: NOT_COUNTED, or any negative number, is not."""
    return targets >= 0


def shares(counted: Tensor) -> Tensor:
    """Each token's weight in a mean over the counted ones, in the shape of `counted`"""
    return counted.float() / counted.sum().clamp(min=1)


def at(places: Tensor | None, tensor: Tensor) -> Tensor:
    """[token, ...] -> [place, ...]; None: all"""
    return tensor if places is None else tensor.index_select(0, places)


def supervision_shares(weights: tuple[float, ...], recursions: int) -> list[float]:
    """Each recursion's share of loss_ce: the last `recursions` weights, the first one repeated where there are fewer; sum 1."""
    used = [weights[0]] * (recursions - len(weights)) + list(weights[-recursions:])
    return [weight / sum(used) for weight in used]


@torch.no_grad()
def measurements_of(made: Made, counted: Tensor, places: Places, halting: HaltingHead | None, config: ModelConfig) -> Measurements:
    """counted: bool [batch, time], one at least"""
    steps = mean = std = usage = surprise_rate = gate_mean = gate_entropy = None
    if halting is not None and made.halting_logits is not None:
        probabilities = halting.probabilities(made.halting_logits[:, places.chosen_weights > 0])
        if len(probabilities) > 1:  # the last recursion decides nothing
            mean, std = probabilities[:-1].mean(), probabilities[:-1].std(correction=0)
        steps = halting_depths(probabilities, config.act_threshold).float().mean()
    if made.readings:
        recollections = [reading.recollection for reading in made.readings if reading.recollection is not None]
        usage = usage_of(torch.stack([recollection.memory for recollection in recollections])[:, counted.any(1)]).mean()
        surprised = torch.stack([recollection.surprise for recollection in recollections]) > config.surprise_threshold
        surprise_rate = surprised[:, counted].float().mean()
        gate_mean = torch.stack([recollection.gate_mean for recollection in recollections])[:, counted].mean()
        gate_entropy = torch.stack([reading.gate_entropy for reading in made.readings])[:, counted].mean()
    return Measurements(steps, mean, std, usage, surprise_rate, gate_mean, gate_entropy)
