"""Who sees whom: a `Sight` is built once per batch, and every layer's attention is told by it.

A token sees itself and the window - 1 tokens before it, of its own document. How that is said follows from who is to hear it: a mask, on
the CPU one for each strip of a row, or FlexAttention's own. attention.py computes with it.

Source: docs/model.md section 1. RoPE arXiv:2104.09864, FlexAttention arXiv:2412.05496.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask

from cognate.precision import attention_dtype, multiplies_by_onednn

LONG = 256  # tokens in a row from which the CPU skips what no window shows; SDPA's kernel takes shorter ones as fast in one call
QUERIES = 64  # in a strip
KEYS = 16  # a strip's keys begin at a multiple of it
BLOCK = 128  # of queries and of keys, in FlexAttention


@dataclass(frozen=True)
class Sight:
    """Where the tokens of a batch stand and whom they see.

    cosine, sine: [batch or absent, time, 1, head_dim/2], in the dtype of the activations
    mask:         [batch or 1, 1, query, key], 0 where the query sees the key, -inf elsewhere; same dtype; or FlexAttention's own;
                  or, with strips, what makes it for the few who need it: it grows with the square of the rows' length
    strips:       which keys which queries need; on the CPU, where rows begin here and looking at all keys is slower
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
    mask:          [batch or 1, 1, query, key], as in Sight, in the dtype that scores are computed in
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


def look(segments: Tensor, window: int, head_dim: int, rope_base: float, dtype: torch.dtype, *, flex: bool = False) -> Sight:
    """The Sight of a batch whose rows are packed with documents; `flex` makes `attend` take FlexAttention.

    segments: [batch, time], equal for tokens of one document (see `segment`); [1, time] when all rows are alike
    """
    position = torch.arange(segments.size(1), device=segments.device)
    if flex:
        return Sight(*turns(position, head_dim, rope_base, dtype), block_mask(segments, window))
    if segments.device.type == "cpu" and (len(position) >= LONG or multiplies_by_onednn(segments.device)):
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
