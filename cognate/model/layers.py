"""The layers every part of Cognate is made of: linear maps, RMSNorm, rotary positions, windowed attention, the MLP.

Attention and MLP are what mag.py (the backbone) and trm.py (the recursion) call. `Sight` says who sees whom; it is
built once per batch and passed down, and `attend` is the one place that chooses an attention kernel. A `Window` keeps
the keys and values that later calls may look back at (state.py).
Weights stay float32; activations have whatever dtype they came in with, and norms are computed in float32.

Source: docs/model.md section 1. RMSNorm arXiv:1910.07467, RoPE arXiv:2104.09864, ReLU^2 arXiv:2109.08668 (Primer), section 3,
QK-norm arXiv:2010.04245.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6


@dataclass(frozen=True)
class Sight:
    """Where the tokens of a batch stand and whom they see.

    cosine, sine: [batch or absent, time, 1, head_dim/2], in the dtype of the activations
    mask:         [batch or 1, 1, query, key], 0 where the query sees the key, -inf elsewhere; same dtype
    places:       where the tokens go in a Window, when they continue earlier ones
    """

    cosine: Tensor
    sine: Tensor
    mask: Tensor
    places: Places | None = None


@dataclass(frozen=True)
class Places:
    """Which of a call's tokens a Window keeps, and where; as three lists of equal length.

    row, token: which token of the call
    slot:       its place in the window
    seen:       where what the call's tokens see is found: they are the first ones and see only each other; they see the
                window and each other; or each is the only one of its row, and the window, once it is in, holds all it sees
    """

    row: Tensor
    token: Tensor
    slot: Tensor
    seen: Literal["call", "both", "window"]


@dataclass(frozen=True)
class Window:
    """The keys and values of each row's last `window` tokens, in a ring: the token at position p is in slot p mod window.

    key, value: [batch, slot, head, head_dim]; written in place
    """

    key: Tensor
    value: Tensor

    def join(self, key: Tensor, value: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Take in a call's keys and values; those that its tokens may see, the window's before the call's.

        key, value: [batch, time, head, head_dim]
        """
        joined = key, value
        if places.seen == "both":
            joined = torch.cat((self.key, key), dim=1), torch.cat((self.value, value), dim=1)
        self.key[places.row, places.slot] = key[places.row, places.token]
        self.value[places.row, places.slot] = value[places.row, places.token]
        return (self.key, self.value) if places.seen == "window" else joined


def look(segments: Tensor, window: int, head_dim: int, rope_base: float, dtype: torch.dtype) -> Sight:
    """The Sight of a batch whose rows are packed with documents.

    segments: [batch or 1, time], equal for tokens of one document (see `segment`)
    """
    position = torch.arange(segments.size(1), device=segments.device)
    behind = position[:, None] - position[None, :]  # [query, key]
    seen = (behind >= 0) & (behind < window) & (segments[:, :, None] == segments[:, None, :])
    # Additive rather than boolean: SDPA would turn a boolean mask into this one anew in every layer.
    return Sight(*turns(position, head_dim, rope_base, dtype), additive(seen, dtype))


def turns(position: Tensor, head_dim: int, rope_base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, [..., time, 1, head_dim/2]; position: [..., time]"""
    frequency = rope_base ** (-torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim)
    angle = (position.float()[..., None] * frequency)[..., None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """bool [batch, query, key] as the mask of a Sight."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def segment(documents: Tensor) -> Tensor:
    """Number the documents of each row 0, 1, 2, ... in order; a document is a run of one id.

    documents: [batch, time]; returns the same shape, int64
    """
    changes = documents[:, 1:] != documents[:, :-1]
    return functional.pad(changes.long().cumsum(1), (1, 0))


class Linear(nn.Linear):
    """y = x W^T without bias, in the dtype of x; the weight itself stays float32."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Uniform with variance 1/inputs, so that what is normalised stays so."""
        bound = math.sqrt(3 / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """rms_norm times a learned weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x) * self.weight.to(x.dtype)


class Attention(nn.Module):
    """Sliding-window attention with RoPE, QK-norm and one learned gain per head for queries and for keys.

    forward() returns the heads' values before the output projection, because the gate (mag.py) stands between the two;
    that projection begins at zero.
    The optimizer's QK-clip finds `query_gain` and `key_gain` by name.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.out = (Linear(width, width) for _ in range(4))
        self.query_gain = nn.Parameter(torch.ones(n_heads))
        self.key_gain = nn.Parameter(torch.ones(n_heads))
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, sight: Sight, window: Window | None = None) -> Tensor:
        """x: [batch, time, width]; returns the same shape."""
        # One gain on the query is the product of both on the score.
        gain = (self.query_gain * self.key_gain).to(x.dtype)[:, None]
        query = rotate(rms_norm(split_heads(self.query(x), self.n_heads)), sight) * gain
        key = rotate(rms_norm(split_heads(self.key(x), self.n_heads)), sight)
        value = split_heads(self.value(x), self.n_heads)
        if window is not None and sight.places is not None:
            key, value = window.join(key, value, sight.places)
        return attend(query, key, value, sight)


class MLP(nn.Module):
    """W_down relu(W_up x)^2; W_down begins at zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _SquaredReLULinear.apply(self.up(x), self.down.weight.to(x.dtype))  # type: ignore[no-untyped-call]
        return out


def attend(query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
    """Softmax attention over the keys each query sees; the one place that chooses a kernel.

    query, key, value: [batch, time, head, head_dim]; returns [batch, time, head * head_dim]
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))  # [batch, head, time, head_dim]
    out = functional.scaled_dot_product_attention(query, key, value, attn_mask=sight.mask)
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[batch, time, width] -> [batch, time, head, width / head]"""
    return x.view(*x.shape[:-1], n_heads, -1)


def rotate(x: Tensor, sight: Sight) -> Tensor:
    """Turn each pair (x_i, x_{i + half}) by its position's angle (RoPE).

    x: [batch, time, head, head_dim]; returns the same shape
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * sight.cosine - b * sight.sine, a * sight.sine + b * sight.cosine), dim=-1)


def rms_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) over the last dimension, computed in float32, in the dtype of x."""
    if x.is_cuda:
        return functional.rms_norm(x, x.shape[-1:], eps=EPSILON)
    out: Tensor = _RMSNorm.apply(x)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    """On the CPU torch's own is fused forward but not backward, where it costs three to five times this one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.rms_norm(x, x.shape[-1:], eps=EPSILON)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide, gradient = x.float(), gradient.float()
        scale = torch.rsqrt(torch.linalg.vecdot(wide, wide) / x.size(-1) + EPSILON)[..., None]
        along = (torch.linalg.vecdot(gradient, wide)[..., None] / x.size(-1)) * scale.square()
        return torch.addcmul(gradient, wide, along, value=-1).mul_(scale).to(x.dtype)


class _SquaredReLULinear(torch.autograd.Function):
    """relu(x)^2 W^T. The square, the widest tensor of a block, is computed again for the gradient instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rectified = functional.relu(x)
        ctx.save_for_backward(rectified, weight)
        return functional.linear(rectified.square(), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rectified, weight = ctx.saved_tensors
        weight_gradient = gradient.flatten(0, -2).mT @ rectified.square().flatten(0, -2)
        return (gradient @ weight).mul_(rectified).mul_(2), weight_gradient
