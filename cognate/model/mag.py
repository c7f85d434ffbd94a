"""The backbone: blocks of windowed attention, long-term memory, the gate that mixes the two, and an MLP (Titans MAG).

`Backbone` turns embedded tokens into features; trm.py thinks on from there, or cognate.py reads them off directly.
`Watch` is passed down only at a step that is measured; without it no block computes a measurement.

Source: Behrouz et al., Titans, arXiv:2501.00663, section 4.2 (memory as a gate).
Where we differ: the gate is a sigmoid of normalised attention and memory channel by channel, with a bias per head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cognate.config import ModelConfig
from cognate.model.attention import Attention, Window, attend
from cognate.model.layers import MLP, Compilable, RMSNorm, region, rms_norm
from cognate.model.memory import Chunks, LongTermMemory, Signals, cut, hold, observe
from cognate.model.sight import Sight


class Recollection(NamedTuple):
    """What a watched block says of its gate and memory.

    gate_mean: [batch, time], 0..1, mean over channels
    surprise:  [batch, time] (memory.observe)
    memory:    [batch, head, key_dim, value_dim], after each row's last counted token
    """

    gate_mean: Tensor
    surprise: Tensor
    memory: Tensor


class Reading(NamedTuple):
    """gate_entropy: [batch, time], nats, mean over channels, with a gradient; the rest only when watched."""

    gate_entropy: Tensor
    recollection: Recollection | None = None


@dataclass(frozen=True)
class Watch:
    """What a measured step adds: memories are looked at where each row's last counted token left them, before any padding.

    after:  [batch, time], the token stands after the last counted one of its row
    chunks: the Chunks in which those tokens belong to the last counted token's document
    """

    after: Tensor
    chunks: Chunks


def watch(segments: Tensor, counted: Tensor, length: int) -> Watch:
    """segments: [batch or 1, time]; counted: bool [batch, time]; length: tokens in a chunk"""
    time = torch.arange(counted.size(1), device=counted.device)
    last = torch.where(counted, time, 0).amax(dim=1, keepdim=True)  # [batch, 1]
    segments = segments.expand_as(counted)
    return Watch(after=time > last, chunks=cut(torch.minimum(segments, segments.gather(1, last)), length))


class Backbone(nn.Module):
    """n_layers blocks and a final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)

    def forward(self, x: Tensor, sight: Sight, chunks: Chunks | None, watched: Watch | None = None) -> tuple[Tensor, list[Reading]]:
        """x: [batch, time, width]; returns the same shape, and a reading per block (none without memory)."""
        readings: list[Reading] = []
        for block in self.blocks:
            x, reading = block(x, sight, chunks, watched)
            if reading is not None:
                readings.append(reading)
        return self.norm(x), readings

    def resume(self, x: Tensor, sight: Sight, chunks: Chunks | None, padding: Tensor | None, past: Sequence[Past]) -> Tensor:
        """Features of tokens that continue what is `past`, one a block, which takes them in.

        x: [batch, time, width]; padding: bool [batch, time], tokens that are none, or None; returns the shape of x
        """
        for block, before in zip(self.blocks, past, strict=True):
            assert isinstance(block, Block)
            x = block.resume(x, sight, chunks, padding, before)
        out: Tensor = self.norm(x)
        return out


@dataclass
class Past:
    """What a block keeps of the tokens before: the keys and values in sight, and its memory (None without one)."""

    window: Window
    memory: Tensor | None


class Block(Compilable):
    """x = lambda x + mixer(n(x)), then x + MLP(n(x)); both begin at zero, so a new block is the identity."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_mixer = RMSNorm(config.d_model)
        self.attention = Attention(config.d_model, config.n_heads)
        self.memory = LongTermMemory(config) if config.ltm else None
        self.gate = Gate(config.d_model, config.n_heads) if config.ltm else None
        self.norm_mlp = RMSNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.d_ff)
        self.residual = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, sight: Sight, chunks: Chunks | None, watched: Watch | None) -> tuple[Tensor, Reading | None]:
        """x: [batch, time, width]; returns the same shape."""
        u, query, key, value = self._before(x, sight.cosine, sight.sine)
        x, mixing = self._after(x, u, attend(query, key, value, sight), chunks)
        return x, mixing and mixing.read(watched)

    def resume(self, x: Tensor, sight: Sight, chunks: Chunks | None, padding: Tensor | None, past: Past) -> Tensor:
        """forward() for tokens that continue `past`, which takes them in."""
        u = self.norm_mixer(x)
        mixed = self.attention(u, sight, past.window)
        if self.memory is not None and self.gate is not None and past.memory is not None:
            recalled, past.memory = self.memory.resume(u, past.memory, padding, chunks)
            mixed, _, _ = self.gate.mix(mixed, recalled)
        return self._add(x, mixed)

    @region
    def _before(self, x: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Attention's side of the mixer up to its heads: n(x), query, key, value."""
        u = self.norm_mixer(x)
        return u, *self.attention.heads(u, cosine, sine)

    @region
    def _after(self, x: Tensor, u: Tensor, attended: Tensor, chunks: Chunks | None) -> tuple[Tensor, _Mixing | None]:
        """The rest of the block."""
        if self.memory is None or self.gate is None:
            return self._add(x, attended), None
        assert chunks is not None
        recalled, signals = self.memory(u, chunks)
        mixed, gate, gate_entropy = self.gate(attended, recalled)
        return self._add(x, mixed), _Mixing(gate, gate_entropy, signals)

    def _add(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = self.residual.to(x.dtype) * x + self.attention.out(mixed)
        out: Tensor = x + self.mlp(self.norm_mlp(x))
        return out


class Gate(nn.Module):
    """g = sigmoid(b + w_y n(y) + w_m n(m)); out = g y + (1 - g) n(m). Opens to attention at first (b = 2)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.attention_weight = nn.Parameter(torch.zeros(width))
        self.memory_weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.full((n_heads,), 2.0))

    def forward(self, attended: Tensor, recalled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """attended, recalled: [batch, time, width]; returns the mixture and g, of the same shape, and g's entropy [batch, time], nats."""
        mixed, drive, gate = self.mix(attended, recalled)
        # -g ln g - (1-g) ln(1-g), where g = sigmoid(a), is softplus(a) - a g: finite for every a.
        entropy = (functional.softplus(drive) - drive * gate).mean(-1, dtype=torch.float32)
        return mixed, gate, entropy

    def mix(self, attended: Tensor, recalled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mixture, what g is the sigmoid of, and g."""
        dtype, width = attended.dtype, attended.size(-1)
        recalled = rms_norm(recalled)
        bias = self.bias[:, None].expand(-1, width // len(self.bias)).flatten().to(dtype)
        drive = bias + self.attention_weight.to(dtype) * rms_norm(attended) + self.memory_weight.to(dtype) * recalled
        gate = drive.sigmoid()
        return torch.lerp(recalled, attended, gate), drive, gate


class _Mixing(NamedTuple):
    """What a Reading is made from: Gate's g and entropy, and what drove the memory."""

    gate: Tensor
    gate_entropy: Tensor
    signals: Signals

    def read(self, watched: Watch | None) -> Reading:
        return Reading(self.gate_entropy, _recollect(self.gate, self.signals, watched) if watched else None)


@torch.no_grad()
def _recollect(gate: Tensor, signals: Signals, watched: Watch) -> Recollection:
    surprise, state = observe(hold(signals, watched.after), watched.chunks)
    return Recollection(gate.mean(-1, dtype=torch.float32), surprise, state)
