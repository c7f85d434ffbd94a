"""Sliding-window attention with rotary positions, over rows packed with documents.

Who sees whom is said by a Sight (sight.py). `attend` is the one place that chooses a kernel. A `Window` keeps the keys and values that
later calls may look back at (state.py).

    FlexAttention       a compiled loss in bf16 on CUDA from sm80 on: of keys, only blocks of 128 with something to see are read
    strips on the CPU   for each 64 queries the keys in their windows alone: by SDPA's kernel, or where that is slow, by products
    masked SDPA         elsewhere; FlexAttention has no gradient on the CPU, and is slow where it is not compiled

Source: docs/model.md section 1. RoPE arXiv:2104.09864, QK-norm arXiv:2010.04245, FlexAttention arXiv:2412.05496.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from cognate.model.layers import Linear, rms_norm, split_heads
from cognate.model.sight import Sight, Slots, Strip
from cognate.precision import attention_dtype, multiplies_by_onednn, product_dtype


@dataclass(frozen=True)
class Window:
    """The keys and values of each row's last `window` tokens, in a ring: the token at position p is in slot p mod window.

    key, value: [batch, slot, head, head_dim]; written in place
    """

    key: Tensor
    value: Tensor

    def join(self, key: Tensor, value: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        """Take in a call's keys and values; those that its tokens may see, the window's before the call's.

        key, value: [batch, time, head, head_dim]
        """
        joined = key, value
        if slots.seen == "both":
            joined = torch.cat((self.key, key), dim=1), torch.cat((self.value, value), dim=1)
        self.key[slots.row, slots.slot] = key[slots.row, slots.token]
        self.value[slots.row, slots.slot] = value[slots.row, slots.token]
        return (self.key, self.value) if slots.seen == "window" else joined


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
        query, key, value = self.heads(x, sight.cosine, sight.sine)
        if window is not None and sight.slots is not None:
            key, value = window.join(key, value, sight.slots)
        return attend(query, key, value, sight)

    def heads(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, [batch, time, head, head_dim]; x: [batch, time, width]"""
        # One gain on the query is the product of both on the score.
        gain = (self.query_gain * self.key_gain).to(x.dtype)[:, None]
        query = rotate(rms_norm(split_heads(self.query(x), self.n_heads)), cosine, sine) * gain
        key = rotate(rms_norm(split_heads(self.key(x), self.n_heads)), cosine, sine)
        return query, key, split_heads(self.value(x), self.n_heads)


def attend(query: Tensor, key: Tensor, value: Tensor, sight: Sight) -> Tensor:
    """Softmax attention over the keys each query sees; the one place that chooses a kernel.

    query, key, value: [batch, time, head, head_dim]; returns [batch, time, head * head_dim]
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))  # [batch, head, time, head_dim]
    if isinstance(sight.mask, BlockMask):
        out = flex_attention(query, key, value, block_mask=sight.mask)
        assert isinstance(out, Tensor)
    elif sight.strips is not None:
        if multiplies_by_onednn(query.device):
            dtype = product_dtype(query.dtype, query.device)
            out = _ByProducts.apply(query.to(dtype), key.to(dtype), value.to(dtype), sight.strips)  # type: ignore[no-untyped-call]
            out = out.to(query.dtype)
        else:
            out = _ByKernel.apply(query, key, value, sight.strips)  # type: ignore[no-untyped-call]
    else:
        wide = attention_dtype(query.dtype, query.device)
        mask = sight.dense.to(wide)
        out = functional.scaled_dot_product_attention(query.to(wide), key.to(wide), value.to(wide), attn_mask=mask).to(query.dtype)
    return out.transpose(1, 2).flatten(2)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + half}) by its position's angle (RoPE).

    x: [batch, time, head, head_dim]; cosine, sine: as in Sight; returns the shape of x
    """
    if not torch.is_grad_enabled():
        return _turn(x, cosine, sine, 1)
    out: Tensor = _Rotation.apply(x, cosine, sine)  # type: ignore[no-untyped-call]
    return out


class _Rotation(torch.autograd.Function):
    """Its gradient is turned back; autograd would need twice the passes, and a copy to join the halves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(gradient, cosine, sine, -1), None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, sign: int) -> Tensor:
    out = torch.empty_like(x)
    (a, b), (new_a, new_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    new_a.copy_(a).mul_(cosine).addcmul_(b, sine, value=-sign)
    new_b.copy_(b).mul_(cosine).addcmul_(a, sine, value=sign)
    return out


class _ByKernel(torch.autograd.Function):
    """Attention strip by strip, by the kernel that SDPA calls on the CPU; autograd would fill up each strip's gradients with zeros.

    Measured on two cores without AMX, forward and backward, ms of masked SDPA / of this, window 256: fp32 4 x 320 9.5 / 8.3,
    4 x 512 24 / 16, 1 x 4096 412 / 54; bf16 4 x 512 43 / 36 (where its products were bf16 too).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, strips: tuple[Strip, ...]) -> Tensor:
        """query, key, value: [batch, head, time, head_dim]; returns the same shape"""
        out, sums = torch.empty_like(query), []
        asks, knows, holds = (tensor.to(strips[0].mask.dtype) for tensor in (query, key, value))
        for queries, keys, mask in strips:
            asked, known, held = asks[:, :, queries], knows[:, :, keys], holds[:, :, keys]
            out[:, :, queries], logarithm = _KERNEL(asked, known, held, attn_mask=mask)
            sums.append(logarithm)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.strips = strips
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, *sums = ctx.saved_tensors
        narrow, wide = query.dtype, ctx.strips[0].mask.dtype
        query, key, value, out, gradient = (tensor.to(wide) for tensor in (query, key, value, out, gradient))
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (queries, keys, mask), logarithm in zip(ctx.strips, sums, strict=True):
            asked, known, held = query[:, :, queries], key[:, :, keys], value[:, :, keys]
            given, found = gradient[:, :, queries], out[:, :, queries]
            of_query, of_key, of_value = _KERNEL_BACKWARD(given, asked, known, held, found, logarithm, 0.0, False, attn_mask=mask)
            to_query[:, :, queries] = of_query
            to_key[:, :, keys] += of_key
            to_value[:, :, keys] += of_value
        return to_query.to(narrow), to_key.to(narrow), to_value.to(narrow), None


# Without dropout, and not causal: the mask says so.
_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_KERNEL_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _ByProducts(torch.autograd.Function):
    """Attention strip by strip, by products; the probabilities are kept for the gradient, in the dtype of the queries.

    SDPA's kernel multiplies pieces too small for oneDNN. Scores and the gradient of the probabilities are float32 in any case. Measured on
    two cores of an AMD EPYC (Zen 5), forward and backward, ms of SDPA's kernel in float32 by MKL / of this over bfloat16:
    4 x 512 17.3 / 9.7, 16 x 64 2.8 / 1.6.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, strips: tuple[Strip, ...]) -> Tensor:
        """query, key, value: [batch, head, time, head_dim]; returns the same shape"""
        out, kept, scale = torch.empty_like(query), [], 1 / math.sqrt(query.size(-1))
        for queries, keys, mask in strips:
            scores = torch.bmm(_rows(query, queries).float(), _rows(key, keys).float().mT)
            by_row = _by_row(scores, query)
            torch.add(mask, by_row, alpha=scale, out=by_row)
            kept.append(scores.softmax(-1).to(query.dtype))
            out[:, :, queries] = _by_row(torch.bmm(kept[-1], _rows(value, keys)), query)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.strips, ctx.scale = strips, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, *kept = ctx.saved_tensors
        to_query = torch.empty_like(query)
        to_key, to_value = (torch.zeros(tensor.flatten(0, 1).shape) for tensor in (key, value))
        for (queries, keys, _), probabilities in zip(ctx.strips, kept, strict=True):
            given, asked = _rows(gradient, queries), _rows(query, queries)
            to_probabilities = torch.bmm(given.float(), _rows(value, keys).float().mT)
            to_scores = _SOFTMAX_BACKWARD(to_probabilities, probabilities.float(), -1, torch.float32).mul_(ctx.scale).to(query.dtype)
            to_query[:, :, queries] = _by_row(torch.bmm(to_scores, _rows(key, keys)), query)
            to_key[:, keys] += torch.bmm(to_scores.mT, asked)
            to_value[:, keys] += torch.bmm(probabilities.mT, given)
        return to_query, _by_row(to_key, key).to(key.dtype), _by_row(to_value, value).to(value.dtype), None


_SOFTMAX_BACKWARD = torch.ops.aten._softmax_backward_data


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    """[batch, head, time, head_dim] to [batch * head, row, head_dim], one after the other as products want them"""
    return tensor[:, :, rows].flatten(0, 1).contiguous()


def _by_row(tensor: Tensor, like: Tensor) -> Tensor:
    """[batch * head, ...] to [batch, head, ...]"""
    return tensor.view(*like.shape[:2], *tensor.shape[1:])
