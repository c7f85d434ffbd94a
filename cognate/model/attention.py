"""Sliding-window attention with rotary positions, over rows packed with documents.

`Sight` says who sees whom; it is built once per batch and passed down to every layer. `attend` is the one place that chooses a
kernel. A `Window` keeps the keys and values that later calls may look back at (state.py).

    FlexAttention       a compiled loss in bf16 on CUDA from sm80 on: of keys, only blocks of 128 with something to see are read
    strips on the CPU   rows of 256 tokens and more: for each 64 queries SDPA's kernel is called with the keys in their windows
    masked SDPA         elsewhere; FlexAttention has no gradient on the CPU, and is slow where it is not compiled

Source: docs/model.md section 1. RoPE arXiv:2104.09864, QK-norm arXiv:2010.04245, FlexAttention arXiv:2412.05496.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from cognate.model.layers import Linear, rms_norm, split_heads
from cognate.precision import attention_dtype

LONG = 256  # tokens in a row from which the CPU skips what no window shows; shorter ones are as fast in one call
QUERIES = 64  # in a strip
KEYS = 16  # a strip's keys begin at a multiple of it
BLOCK = 128  # of queries and of keys, in FlexAttention


@dataclass(frozen=True)
class Sight:
    """Where the tokens of a batch stand and whom they see.

    cosine, sine: [batch or absent, time, 1, head_dim/2], in the dtype of the activations
    mask:         [batch or 1, 1, query, key], 0 where the query sees the key, -inf elsewhere; same dtype; or FlexAttention's own;
                  or, with strips, what makes it for the few who need it: it grows with the square of the rows' length
    strips:       which keys which queries need; on the CPU, when long rows begin here
    slots:        where the tokens go in a Window, when they continue earlier ones
    """

    cosine: Tensor
    sine: Tensor
    mask: Tensor | BlockMask | Callable[[], Tensor]
    strips: tuple[Strip, ...] | None = None
    slots: Slots | None = None

    @property
    def dense(self) -> Tensor:
        """The mask, where it is not FlexAttention's."""
        assert not isinstance(self.mask, BlockMask)
        return self.mask if isinstance(self.mask, Tensor) else self.mask()


class Strip(NamedTuple):
    """Up to QUERIES queries in a row, and the keys that hold all they may see.

    queries, keys: positions in the row
    mask:          [batch or 1, 1, query, key], as in Sight, in the dtype that attention is computed in
    """

    queries: slice
    keys: slice
    mask: Tensor


@dataclass(frozen=True)
class Slots:
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


def look(segments: Tensor, window: int, head_dim: int, rope_base: float, dtype: torch.dtype, *, flex: bool = False) -> Sight:
    """The Sight of a batch whose rows are packed with documents; `flex` makes `attend` take FlexAttention.

    segments: [batch, time], equal for tokens of one document (see `segment`); [1, time] when all rows are alike
    """
    position = torch.arange(segments.size(1), device=segments.device)
    if flex:
        return Sight(*turns(position, head_dim, rope_base, dtype), block_mask(segments, window))
    if segments.device.type == "cpu" and len(position) >= LONG:
        mask = partial(_mask, position, position, segments, segments, window, dtype)
        strips = _strips(segments, window, attention_dtype(dtype, segments.device))
        return Sight(*turns(position, head_dim, rope_base, dtype), mask, strips)
    return Sight(*turns(position, head_dim, rope_base, dtype), _mask(position, position, segments, segments, window, dtype))


def _mask(query: Tensor, key: Tensor, of_query: Tensor, of_key: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """The mask of a Sight, [row, 1, query, key], for positions of queries and keys, [query] and [key], and their segments, [row, ...];
    positions may be by row as well."""
    behind = query[..., :, None] - key[..., None, :]
    # Additive rather than boolean: SDPA would turn a boolean mask into this one anew in every layer.
    return additive((behind >= 0) & (behind < window) & (of_query[:, :, None] == of_key[:, None, :]), dtype)


def block_mask(segments: Tensor, window: int) -> BlockMask:
    """The same for FlexAttention; segments: [batch, time], numbered in order.

    Which blocks of keys a block of queries needs follows from where both begin and end, for documents do not come back: a run of
    blocks up to its own. torch's create_block_mask looks at all pairs and sorts, a hundred launches a batch.
    """
    batch, time = segments.shape
    segments = segments.int().contiguous()  # the kernels read it

    def sees(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window) & (segments[row, query] == segments[row, key])

    blocks = -(-time // BLOCK)
    number = torch.arange(blocks, device=segments.device, dtype=torch.int32)
    behind = number[:, None] - number  # [query block, key block]
    first, last = segments[:, number * BLOCK], segments[:, (number * BLOCK + BLOCK - 1).clamp(max=time - 1)]
    within = (behind > 0) & (behind * BLOCK - BLOCK + 1 < window)
    needed = (behind == 0) | (within & (first[:, :, None] == last[:, None, :]))  # [batch, query block, key block]
    of_query, of_key = needed.sum(2, dtype=torch.int32)[:, None], needed.sum(1, dtype=torch.int32)[:, None]  # [batch, 1, block]
    keys = (number[:, None] + number - of_query[..., None] + 1).clamp(max=blocks - 1)  # those it needs first, then any
    queries = (number[:, None] + number).clamp(max=blocks - 1).expand(batch, 1, -1, -1).contiguous()
    return BlockMask(
        seq_lengths=(time, time),
        kv_num_blocks=of_query,
        kv_indices=keys,
        full_kv_num_blocks=None,
        full_kv_indices=None,
        q_num_blocks=of_key,
        q_indices=queries,
        full_q_num_blocks=None,
        full_q_indices=None,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=sees,
    )


def has_flex(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether compiled FlexAttention can be expected to work, and to be faster than masked SDPA: in float32 its blocks are small."""
    return device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)


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
        out = _InStrips.apply(query, key, value, sight.strips)  # type: ignore[no-untyped-call]
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


def _strips(segments: Tensor, window: int, dtype: torch.dtype) -> tuple[Strip, ...]:
    """segments: [batch, time], on the CPU

    The keys follow from the window alone: were they a matter of where the batch's documents begin, a row would be rounded otherwise
    in other company.
    """
    position = torch.arange(segments.size(1))
    strips = []
    for first in range(0, len(position), QUERIES):
        queries = slice(first, min(first + QUERIES, len(position)))
        keys = slice(max(0, first - window + 1) // KEYS * KEYS, queries.stop)
        mask = _mask(position[queries], position[keys], segments[:, queries], segments[:, keys], window, dtype)
        strips.append(Strip(queries, keys, mask))
    return tuple(strips)


class _InStrips(torch.autograd.Function):
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
