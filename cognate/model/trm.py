"""The recursion: one small net, applied again and again to refine an answer y with a latent z.

    for t in 1..recursions:  repeat micro_steps: z = net(x + y + z);   y = net(y + z);   emit y_t, z_t

x are the backbone's features. Keys and values are computed from x once, only the query changes: a token that halts early leaves
nothing undone for the others, one cache serves all applications, and no recursion can look further than the first.

Source: Jolicoeur-Martineau, Tiny Recursive Models, arXiv:2510.04871, figure 3 and section 4.
Where we differ: causal, one net of one layer, keys and values from x, the gradient goes through all recursions (bptt="full").
bptt="last" has the paper's gradient, through the last one, but not its deep supervision (optimizer steps between passes): there the
losses of earlier recursions teach only the head, and y_0 and z_0 learn nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cognate.config import ModelConfig
from cognate.model.attention import Window, attend, rotate
from cognate.model.layers import MLP, Compilable, Linear, RMSNorm, region, rms_norm, split_heads
from cognate.model.sight import Sight


class Thought(NamedTuple):
    """answer (y) and latent (z): [batch, time, width] each"""

    answer: Tensor
    latent: Tensor


class KeysValues(NamedTuple):
    """key and value of the features: [batch, time, head, head_dim] each"""

    key: Tensor
    value: Tensor


class Recursion(Compilable):
    """The shared net and its start; output projections begin at zero, so that the loop begins as the identity (normalised)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.recursions, self.micro_steps, self.bptt = config.recursions, config.micro_steps, config.bptt
        width = config.d_model
        self.query, self.key, self.value, self.out = (Linear(width, width) for _ in range(4))
        self.mlp = MLP(width, config.trm_d_ff)
        self.norm_features, self.norm_attention, self.norm_mlp = (RMSNorm(width) for _ in range(3))
        self.y0 = nn.Parameter(torch.zeros(width))
        self.z0 = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, sight: Sight) -> list[Thought]:
        """x: [batch, time, width]; returns a Thought per recursion."""
        kept = self.keys_values(x, sight)
        thought, thoughts = self.begin(x), []
        for number in range(1, self.recursions + 1):
            # The earlier ones only bring y and z to where the last one starts from (TRM section 4.1).
            keep_graph = self.bptt == "full" or number == self.recursions or not self.training
            with torch.set_grad_enabled(torch.is_grad_enabled() and keep_graph):
                thought = self.advance(thought, x, kept, sight)
            thoughts.append(thought)
        return thoughts

    def ponder(self, x: Tensor, sight: Sight, window: Window, halts: Callable[[Tensor, int], Tensor], limit: int) -> tuple[Tensor, Tensor]:
        """As forward() for tokens that continue what is in `window`, but a token is done once it halts, at `limit` at the latest.

        x: [batch, time, width]
        halts: (latents [row, token, width], number of the recursion) -> bool [row, token]
        returns the answers [batch, time, width], and the number of each token's last recursion, int64 [batch, time]
        """
        going = _Going.all_of(self.begin(x), x, self.keys_values(x, sight, window), sight)
        answers, depths = torch.empty_like(x), torch.empty(x.shape[:2], dtype=torch.long, device=x.device)
        for number in range(1, limit + 1):
            thought = self.advance(going.thought, going.x, going.kept, going.sight)
            halted = going.live if number == limit else going.live & halts(thought.latent, number)
            if not halted.any():
                going = replace(going, thought=thought)
                continue
            answers.flatten(0, 1)[going.token[halted]] = thought.answer[halted]
            depths.flatten()[going.token[halted]] = number
            live = going.live & ~halted
            if number == limit or not live.any():
                break
            going = replace(going, thought=thought, live=live).narrowed()
        return answers, depths

    def keys_values(self, x: Tensor, sight: Sight, window: Window | None = None) -> KeysValues:
        """What every application of the net may look at."""
        features = self.norm_features(x)
        key = rotate(rms_norm(split_heads(self.key(features), self.n_heads)), sight.cosine, sight.sine)
        value = split_heads(self.value(features), self.n_heads)
        if window is not None and sight.slots is not None:
            key, value = window.join(key, value, sight.slots)
        return KeysValues(key, value)

    def begin(self, x: Tensor) -> Thought:
        return Thought(x + self.y0.to(x.dtype), self.z0.to(x.dtype).expand_as(x))

    def advance(self, thought: Thought, x: Tensor, kept: KeysValues, sight: Sight) -> Thought:
        """One recursion: micro_steps updates of z, one of y."""
        y, z = thought
        for _ in range(self.micro_steps):
            z = self._net(x + y + z, kept, sight)
        return Thought(self._net(y + z, kept, sight), z)

    def _net(self, h: Tensor, kept: KeysValues, sight: Sight) -> Tensor:
        return self._after(h, attend(self._before(h, sight.cosine, sight.sine), *kept, sight))

    @region
    def _before(self, h: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """The net up to its query."""
        return rotate(rms_norm(split_heads(self.query(h), self.n_heads)), cosine, sine)

    @region
    def _after(self, h: Tensor, attended: Tensor) -> Tensor:
        """The rest of the net."""
        h = self.norm_attention(h + self.out(attended))
        out: Tensor = self.norm_mlp(h + self.mlp(h))
        return out


@dataclass(frozen=True)
class _Going:
    """The tokens that still think, in rows as short as the row with the most of them; fewer rows than the batch, maybe.

    live:  bool [row, place], false where a row is filled up with tokens that have halted
    token: int64 [row, place], which token of the flattened batch it is
    The rest as in Recursion.advance().
    """

    live: Tensor
    token: Tensor
    thought: Thought
    x: Tensor
    kept: KeysValues
    sight: Sight

    @classmethod
    def all_of(cls, thought: Thought, x: Tensor, kept: KeysValues, sight: Sight) -> _Going:
        token = torch.arange(x.size(0) * x.size(1), device=x.device).view(x.shape[:2])
        cosine, sine = (table.expand(*token.shape, *table.shape[-2:]) for table in (sight.cosine, sight.sine))
        sight = Sight(cosine, sine, sight.dense.expand(len(x), -1, -1, -1))
        return cls(torch.ones_like(token, dtype=torch.bool), token, thought, x, kept, sight)

    def narrowed(self) -> _Going:
        """Without the places and rows that hold none of the living any more."""
        counts = self.live.sum(1)
        length = int(counts.max())
        row = counts.nonzero()  # [row, 1]
        if (len(row), length) == self.live.shape:
            return self
        place = self.live[row[:, 0]].int().argsort(dim=1, descending=True, stable=True)[:, :length]  # the living first, in order
        return _Going(
            live=self.live[row, place],
            token=self.token[row, place],
            thought=Thought(self.thought.answer[row, place], self.thought.latent[row, place]),
            x=self.x[row, place],
            kept=self.kept if len(row) == len(self.live) else KeysValues(self.kept.key[row[:, 0]], self.kept.value[row[:, 0]]),
            sight=Sight(self.sight.cosine[row, place], self.sight.sine[row, place], self.sight.dense[row, 0, place][:, None]),
        )
