"""Long-term memory: what a block keeps beyond its attention window.

A head's memory is a matrix S that decays and is written to at every token, and read by the token's query:

    S_t = a_t S_{t-1} + b_t k_t v_t^T,   m_t = S_t^T q_t,   log a_t <= -1/capacity

`LongTermMemory` makes a, b, q, k, v from the features. `step` is that recurrence, one token at a time (cached decoding);
`scan` is the same for all tokens at once, in chunks, exactly. A memory belongs to one document of one row: it is zero where a
document starts, and outlives the call only in the State of a text that is read on. mag.py mixes what is read with attention.

Source: Behrouz et al., Titans, arXiv:2501.00663, section 3.1 (equations 8-15) and, for the parallel form, section 3.2.
Where we differ: the memory is linear and the write is k v^T itself, not the gradient of a loss (no momentum, no deep memory);
so the recurrence is that of gated linear attention (arXiv:2312.06635), and its chunked form needs no loop over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cognate.config import ModelConfig
from cognate.model.layers import Linear, linear, split_heads


class Signals(NamedTuple):
    """What the memory is driven by; float32, as is everything it computes.

    query, key: [batch, head, time, key_dim], unit length
    value:      [batch, head, time, value_dim]
    log_decay:  [batch, head, time], below zero
    write:      [batch, head, time], 0..1
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    write: Tensor


@dataclass(frozen=True)
class Chunks:
    """Who belongs with whom when time is cut into chunks; built once per batch. `rows` is the batch, or 1 when all rows agree.

    length:    tokens in a chunk
    together:  [rows, 1, chunk, length, length]  query i and key j <= i are in one document
    arriving:  [rows, 1, chunk, length]          the token's document was open when the chunk began
    leaving:   [rows, 1, chunk, length]          the token's document is still open when the chunk ends
    linked:    [rows, 1, chunk, chunk]           what chunk m <= n left behind is still in its document at the end of chunk n
    untouched: [rows, 1, chunk]                  the row's first document is still open when the chunk ends
    starts:    [rows, time]                      the token is the first of its document (the row's first token is not)
    """

    length: int
    together: Tensor
    arriving: Tensor
    leaving: Tensor
    linked: Tensor
    untouched: Tensor
    starts: Tensor


def cut(segments: Tensor, length: int) -> Chunks:
    """The Chunks of a batch.

    segments: [batch or 1, time], the number of each token's document (sight.segment)
    """
    length = min(length, segments.size(1))
    starts = functional.pad(segments[:, 1:] != segments[:, :-1], (1, 0))
    # The tail that fills the last chunk belongs to the last document, whose memory it leaves as it is.
    missing = -segments.size(1) % length
    segments = torch.cat((segments, segments[:, -1:].expand(-1, missing)), dim=1)
    tokens = segments.view(len(segments), 1, -1, length)  # [rows, 1, chunk, length]
    last = tokens[..., -1]  # [rows, 1, chunk]
    before = torch.cat((tokens[..., :1, 0], last[..., :-1]), dim=-1)
    return Chunks(
        length=length,
        together=(tokens[..., :, None] == tokens[..., None, :]).tril(),
        arriving=tokens == before[..., None],
        leaving=tokens == last[..., None],
        linked=(last[..., :, None] == last[..., None, :]).tril(),
        untouched=last == tokens[..., 0, :1],
        starts=starts,
    )


class LongTermMemory(nn.Module):
    """Features in, what the memory recalls for them out.

    `capacity` is the longest horizon in tokens. It is a buffer, so that models of different capacity have equal shapes.
    """

    capacity: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.memory_heads
        self.query = Linear(config.d_model, self.n_heads * config.memory_key_dim)
        self.key = Linear(config.d_model, self.n_heads * config.memory_key_dim)
        self.value = Linear(config.d_model, self.n_heads * config.memory_value_dim)
        self.out = Linear(self.n_heads * config.memory_value_dim, config.d_model)
        self.gates = nn.Linear(config.d_model, 2 * self.n_heads)  # decay of each head, then write of each head
        self.register_buffer("capacity", torch.tensor(float(config.memory_capacity)), persistent=False)
        self._start_forgetting_slowly()

    @torch.no_grad()
    def _start_forgetting_slowly(self) -> None:
        # Horizons from 1/64 to 1/4 of the capacity, which the decay's floor shortens a little: most text is shorter than the capacity,
        # and the decay can be learned.
        horizon = self.capacity * torch.logspace(math.log2(1 / 64), math.log2(1 / 4), self.n_heads, base=2)
        self.gates.weight.zero_()
        self.gates.bias.copy_(torch.cat((torch.log(torch.expm1(1 / horizon)), torch.zeros(self.n_heads))))

    def forward(self, x: Tensor, chunks: Chunks) -> tuple[Tensor, Signals]:
        """What is recalled for the features, and what drove the memory.

        x: [batch, time, width]; returns the same shape and dtype, and the Signals
        """
        signals = self.signals(x)
        recalled, _ = scan(signals, chunks)
        return self._combine(recalled, x.dtype), signals

    def resume(self, x: Tensor, state: Tensor, padding: Tensor | None, chunks: Chunks | None) -> tuple[Tensor, Tensor]:
        """What is recalled for features that continue a document, and the memory after them.

        x: [batch, time, width]; padding: bool [batch, time], tokens that leave the memory as it is, or None
        state: the memory before, [batch, head, key_dim, value_dim]
        chunks: None where time is 1
        """
        signals = self.signals(x)
        if padding is not None:
            signals = hold(signals, padding)
        if chunks is None:
            after, recalled = step(state, signals)
        else:
            recalled, after = scan(signals, chunks, state)
        return self._combine(recalled, x.dtype), after

    def _combine(self, recalled: Tensor, dtype: torch.dtype) -> Tensor:
        out: Tensor = self.out(recalled.transpose(1, 2).flatten(2).to(dtype))
        return out

    def signals(self, x: Tensor) -> Signals:
        """x: [batch, time, width]"""
        gates = (linear(x, self.gates.weight).float() + self.gates.bias).transpose(1, 2)
        decay, write = gates.chunk(2, dim=1)  # [batch, head, time]
        return Signals(
            query=self._unit(self.query(x)),
            key=self._unit(self.key(x)),
            value=split_heads(self.value(x).float(), self.n_heads).transpose(1, 2),
            log_decay=-(1 / self.capacity + functional.softplus(decay)),
            write=write.sigmoid(),
        )

    def _unit(self, x: Tensor) -> Tensor:
        heads = split_heads(functional.silu(x).float(), self.n_heads).transpose(1, 2)
        out: Tensor = heads / torch.linalg.vector_norm(heads, dim=-1, keepdim=True).clamp(min=1e-12)
        return out


def hold(signals: Signals, still: Tensor) -> Signals:
    """The signals with which the tokens in `still`, bool [batch, time], leave the memory as it is."""
    still = still[:, None]
    return signals._replace(log_decay=signals.log_decay.masked_fill(still, 0), write=signals.write.masked_fill(still, 0))


def step(state: Tensor, now: Signals) -> tuple[Tensor, Tensor]:
    """One token of the recurrence: the new memory, and what the token reads from it.

    state: [batch, head, key_dim, value_dim], zero at a document's start; `now` is of time 1
    returns the state after the token, and [batch, head, 1, value_dim]
    """
    state = now.log_decay.exp()[..., None] * state + (now.key * now.write[..., None]).mT @ now.value
    return state, now.query @ state


def scan(signals: Signals, chunks: Chunks, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`step` for every token at once: what each token reads, and the memory after the last one.

    initial: the memory before the first token, [batch, head, key_dim, value_dim]; zero when None. It belongs to the
             document of each row's first token.
    returns  [batch, head, time, value_dim] and [batch, head, key_dim, value_dim]

    Within a chunk a token reads earlier ones as attention without softmax, weighted by the decay between the two; what came
    before the chunk it reads from the memory that entered it. Every exponent is <= 0, so nothing overflows, and decays are
    summed within one document only, so one document cannot change another's last bit.
    """
    query, key, value, log_decay, write = (_chunked(tensor, chunks.length) for tensor in signals)
    key = key * write[..., None]

    since_start, between = _decays(log_decay, chunks.together)  # [batch, head, chunk, length], [..., length, length]
    within = ((query @ key.mT) * between) @ value

    until_end = (since_start[..., -1:] - since_start).masked_fill(~chunks.leaving, -torch.inf).exp()
    left_behind = (key * until_end[..., None]).mT @ value  # [batch, head, chunk, key_dim, value_dim]
    since_start_of_chunks, between_chunks = _decays(since_start[..., -1], chunks.linked)
    after = (between_chunks @ left_behind.flatten(3)).view_as(left_behind)
    if initial is None:
        initial = torch.zeros_like(after[:, :, 0])
    else:
        kept = since_start_of_chunks.masked_fill(~chunks.untouched, -torch.inf).exp()
        after = after + kept[..., None, None] * initial[:, :, None]
    entering = torch.cat((initial[:, :, None], after[:, :, :-1]), dim=2)

    since_entry = since_start.masked_fill(~chunks.arriving, -torch.inf).exp()
    across = (query * since_entry[..., None]) @ entering
    return (within + across).flatten(2, 3)[:, :, : signals.value.size(2)], after[:, :, -1]


def _chunked(tensor: Tensor, length: int) -> Tensor:
    """[batch, head, time, ...] -> [batch, head, chunk, length, ...], the last chunk filled with zeros."""
    missing = -tensor.size(2) % length
    if missing:
        tensor = torch.cat((tensor, tensor.new_zeros(*tensor.shape[:2], missing, *tensor.shape[3:])), dim=2)
    return tensor.reshape(*tensor.shape[:2], -1, length, *tensor.shape[3:])


def _decays(log_decay: Tensor, together: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the log decay since each token's document began (or the chunk did), and exp of their differences.

    log_decay: [..., length]; together: [..., length, length], lower triangular
    returns    [..., length] and [..., query, key], 0 where not together
    """
    since_start = log_decay[..., None, :].masked_fill(~together, 0).sum(-1)
    difference = since_start[..., :, None] - since_start[..., None, :]
    # Masked before exp: exp(-inf) is an exact zero with a zero gradient.
    return since_start, difference.masked_fill(~together, -torch.inf).exp()


def observe(signals: Signals, chunks: Chunks) -> tuple[Tensor, Tensor]:
    """How much of each token's value the memory did not foretell, and the memory after the last token.

    Surprise is ||v_t - S_{t-1}^T k_t|| / ||v_t||, norms over all heads together; 1 where a document starts and its memory is empty.
    returns [batch, time] and [batch, head, key_dim, value_dim]
    """
    # What token t+1's key reads after token t; then one place to the right, to stand at token t+1.
    ahead = torch.cat((signals.key[:, :, 1:], torch.zeros_like(signals.key[:, :, :1])), dim=2)
    recalled, state = scan(signals._replace(query=ahead), chunks)
    foretold = torch.cat((torch.zeros_like(recalled[:, :, :1]), recalled[:, :, :-1]), dim=2)
    foretold = foretold.masked_fill(chunks.starts[:, None, :, None], 0)
    missed, whole = ((value.transpose(1, 2).flatten(2).norm(dim=-1)) for value in (signals.value - foretold, signals.value))
    return missed / whole.clamp(min=1e-12), state


def usage(state: Tensor) -> Tensor:
    """Effective rank of a memory over its key width, 0..1: exp of the entropy of its singular values' shares.

    state: [..., key_dim, value_dim]; returns [...]. An empty memory has usage 0.
    Source: Roy & Vetterli, The effective rank (EUSIPCO 2007).
    """
    # R of state^T = Q R has the same, and is key_dim x key_dim: CUDA takes those of up to 32 x 32 all at once, wider ones in turn.
    values = torch.linalg.svdvals(torch.linalg.qr(state.mT, mode="r").R)
    total = values.sum(-1, keepdim=True)
    entropy = torch.special.entr(values / total.clamp(min=1e-30)).sum(-1)
    return (torch.where(total[..., 0] > 0, entropy.exp(), 0.0) / state.size(-2)).clamp(max=1)
