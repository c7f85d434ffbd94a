"""Adaptive computation time: after each recursion, would thinking on help?

The head predicts it per token from the latent z_t. Its target is a fact of the training step: 1 where no later recursion has a
cross-entropy lower by more than `delta`. Nothing but the head learns from it. Of the last recursion training sees nothing later,
so it teaches nothing; a model that may think longer than it was trained to judges by what it learned of the earlier ones.
`halting_depths` turns probabilities into depths.

Source: docs/model.md section 1; the idea is Graves, ACT, arXiv:1603.08983. TRM (arXiv:2510.04871, fig. 3) has a supervised halt as well,
which asks of a whole answer whether it is correct; this one asks of each token whether more thought would help.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

EMA_DECAY = 0.98


class HaltingHead(nn.Module):
    """h_t = w.z_t + b, and a calibration: running means of what was predicted and of what was true, per recursion but the last.

    Both means start at 1/2, so that the correction grows with the evidence. They are saved with a checkpoint.
    """

    predicted: Tensor
    observed: Tensor

    def __init__(self, width: int, recursions: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -2.0)  # at first: think on
        self.register_buffer("predicted", torch.full((max(1, recursions - 1),), 0.5))
        self.register_buffer("observed", torch.full((max(1, recursions - 1),), 0.5))

    def forward(self, latents: Tensor) -> Tensor:
        """latents: [..., width], taken as given (detached); returns logits [...], float32."""
        logits: Tensor = self.linear(latents.detach().float())
        return logits.squeeze(-1)

    @torch.no_grad()
    def calibrate(self, logits: Tensor, targets: Tensor, weights: Tensor, share: float = 1.0) -> None:
        """Take a step's predictions and truths into the running means, or those of a part of it.

        The parts of a step leave what the whole would, but for a hundredth of what tells their means apart.

        logits, targets: [recursion, token], without the last recursion
        weights: [token], of each in a mean; where they are all 0, nothing changes
        share:   of the step, 0..1
        """
        if len(logits):
            rate = (1 - EMA_DECAY**share) * weights.sum()
            self.predicted.lerp_(logits.sigmoid() @ weights, rate)
            self.observed.lerp_(targets @ weights, rate)

    def probabilities(self, logits: Tensor) -> Tensor:
        """sigmoid(h_t + logit(observed_t) - logit(predicted_t)); from the last recursion on, as for the one before it.

        logits: [recursion, token]; returns the same shape, 0..1
        """
        return torch.stack([self._calibrated(logit, number) for number, logit in enumerate(logits, start=1)])

    def halts(self, latents: Tensor, number: int, threshold: float) -> Tensor:
        """Whether tokens halt after recursion `number`, counted from 1; latents: [..., width], returns bool [...]"""
        return self._calibrated(self(latents), number) >= threshold

    def _calibrated(self, logits: Tensor, number: int) -> Tensor:
        known = min(number, len(self.observed)) - 1
        return torch.sigmoid(logits + torch.logit(self.observed[known], eps=1e-3) - torch.logit(self.predicted[known], eps=1e-3))


def halting_targets(cross_entropy: Tensor, delta: float) -> Tensor:
    """1 where the best of this and all later recursions saves at most `delta` nats, else 0.

    cross_entropy: [recursion, token]; returns the same shape, float32
    """
    best_from_here = cross_entropy.flip(0).cummin(0).values.flip(0)
    return (cross_entropy - best_from_here <= delta).float()


def halting_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean binary cross-entropy over recursions and tokens, nats; 0 when there are none.

    logits, targets: [recursion, token]; weights: [token], of each in the mean over tokens
    """
    each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (each @ weights).sum() / max(1, len(logits))


def halting_depths(probabilities: Tensor, threshold: float) -> Tensor:
    """The first recursion, counted from 1, at which a token's probability reaches the threshold; the last one if none does.

    probabilities: [recursion, token]; returns int64 [token]
    """
    reached = probabilities >= threshold
    reached[-1] = True
    return reached.int().argmax(0) + 1
