"""The equations of a step, in its order, but for Muon's orthogonalisation (polar.py).

What they move, they move in place; `alive` is explained in mugrokfast.py.

Sources: Grokfast-EMA, arXiv:2405.20233. Adafactor's factored second moment, arXiv:1804.04235, section 3. Cautious weight decay,
arXiv:2510.12402. muon_clip() is MuonClip's QK-Clip, Kimi K2, arXiv:2507.20534, section 2.1.
Where we differ: Grokfast's weight is ramped from 0; a channel's second moment is of gradients whose tokens are all of one size, so
that the frequent ones do not decide alone; qk_clip(), for models with QK-norm, bounds the logit that gains allow, not the
largest one seen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Scalar = float | Tensor  # a number, or [] on the parameters' device
Alive = int | Tensor  # 1, or 0 in a step that is skipped; [] when that is decided on the device


def grokfast_ema(gradients: list[Tensor], slow: list[Tensor], alpha: float, weight: Scalar, *, alive: Alive = 1) -> None:
    """Amplify what is slow in each gradient. Both are moved in place: mu = alpha mu + (1 - alpha) g, then g = g + weight mu.

    gradients, slow: tensors of any shape, pairwise alike; at the first step `slow` equals `gradients`
    """
    ema(slow, gradients, 1 - alpha, alive)
    add(gradients, slow, weight)


def ramp(steps: Scalar, ramp_steps: int) -> Scalar:
    """From 0 at the first step to 1 after `ramp_steps`."""
    if not ramp_steps:
        return 1.0
    share = steps / ramp_steps
    return share.clamp(max=1.0) if isinstance(share, Tensor) else min(1.0, share)


def nesterov(gradients: list[Tensor], momenta: list[Tensor], beta: float, *, alive: Alive = 1) -> None:
    """Momentum that looks one step ahead. Both are moved in place: M = beta M + (1 - beta) g, then g = g + beta (M - g)."""
    ema(momenta, gradients, 1 - beta, alive)
    torch._foreach_lerp_(gradients, momenta, beta)


def cautious_decay(moves: list[Tensor], weights: list[Tensor], decay: float, scratch: list[Tensor]) -> None:
    """Add decay * weight to each move, in place, where it does not pull against the move; `scratch` is shaped like `moves`."""
    torch._foreach_copy_(scratch, weights)
    torch._foreach_mul_(scratch, moves)
    if scratch[0].is_cuda:  # 1 where the two agree, else 0, in three launches for all
        torch._foreach_sign_(scratch)
        torch._foreach_add_(scratch, 1)
        torch._foreach_sign_(scratch)
    else:  # in one pass
        for product in scratch:
            product.ge_(0)
    torch._foreach_addcmul_(moves, weights, scratch, value=decay)


def move_tokens(
    gradient: Tensor, momentum: Tensor, mean_square: Tensor, step: Tensor, betas: tuple[float, float], *, alive: Alive = 1
) -> Tensor:
    """Take a table's gradient into `momentum` and `mean_square`, in place; `gradient` is used up.

    gradient, momentum: [token, width]; mean_square: [token, 1]
    step: [], the number of gradients seen, this one included
    returns the gradient's squares, each token's divided by its mean_square, summed over the tokens: [1, width]
    """
    beta1, beta2 = betas
    ema([momentum], [gradient], 1 - beta1, alive)
    square = gradient.square_()
    ema([mean_square], [square.mean(-1, keepdim=True)], 1 - beta2, alive)
    return square.div_((mean_square / (1 - beta2**step)).clamp_(min=1e-30)).sum(0, keepdim=True)


def token_scale(mean_square: Tensor, step: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """What a table's momentum is multiplied by, and channel_scale(): its correction for beginning at 0, by the token's size; [token, 1]"""
    beta1, beta2 = betas
    root = (mean_square / (1 - beta2**step)).sqrt_().add_(eps)
    return root.mul_(1 - beta1**step).reciprocal_()


def channel_scale(channel_square: Tensor, eps: float) -> Tensor:
    """One over the root of each channel's share, [1, width], 1 where all are alike."""
    return (channel_square / channel_square.mean().clamp(min=1e-30)).sqrt_().add_(eps).reciprocal_()


def qk_clip(query_gain: Tensor, key_gain: Tensor, head_dim: int, threshold: Scalar) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink both gains of each head whose largest possible attention logit exceeds `threshold`.

    For attention with QK-norm: normalised queries and keys have length sqrt(head_dim), and scores are divided by it once.

    query_gain, key_gain: [..., head]
    returns (query_gain, key_gain, clipped), each of that shape; clipped is bool
    """
    shrink, clipped = _shrink(math.sqrt(head_dim) * (query_gain * key_gain).abs(), threshold)
    return query_gain * shrink, key_gain * shrink, clipped


def muon_clip(query: Tensor, key: Tensor, largest: Tensor, threshold: Scalar) -> tuple[Tensor, Tensor, Tensor]:
    """Shrink the rows of both projections of each head that has shown an attention logit above `threshold`.

    For attention without QK-norm, whose logits are bilinear in the two: with S_max = `largest`, each is multiplied by
    sqrt(threshold / S_max), and the same logit is then the threshold.

    query, key: [head * head_dim, d_model], W_q and W_k, a head's rows together
    largest: [head], the largest logit q.k / sqrt(head_dim) seen; one that is not finite clips nothing
    returns (query, key, clipped), shaped like query, key and largest; clipped is bool
    """
    shrink, clipped = _shrink(largest.to(query.dtype), threshold)
    by_row = shrink.repeat_interleave(query.shape[0] // len(largest))[:, None]  # [head * head_dim, 1]
    return query * by_row, key * by_row, clipped


def ema(averages: list[Tensor], values: list[Tensor], rate: float, alive: Alive) -> None:
    """average += rate (value - average), in place. Where `alive` is 0 the values are too, and nothing changes."""
    if isinstance(alive, Tensor):
        torch._foreach_mul_(averages, 1 - rate * alive)
        torch._foreach_add_(averages, values, alpha=rate)
    else:
        torch._foreach_lerp_(averages, values, rate)


def add(tensors: list[Tensor], others: list[Tensor], factor: Scalar) -> None:
    """tensor += factor * other, in place."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(others, factor))
    else:
        torch._foreach_add_(tensors, others, alpha=factor)


def _shrink(largest: Tensor, threshold: Scalar) -> tuple[Tensor, Tensor]:
    """(what both factors of a logit are multiplied by, whether that is below 1), each shaped like `largest`."""
    # A head just clipped may round to the last bit above the threshold: that is not another clip.
    clipped = (largest > threshold * (1 + 4 * torch.finfo(largest.dtype).eps)) & largest.isfinite()
    return torch.where(clipped, (threshold / largest).sqrt(), 1.0), clipped
