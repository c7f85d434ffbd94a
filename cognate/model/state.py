"""What a model keeps of the tokens it has read, so that it can read on: attention windows and memories, a row for each sequence.

`Cognate.extend` takes a State and returns one; generate.py is built on that. Everything has a fixed shape, however much was read.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cognate.config import ModelConfig
from cognate.model.attention import Window
from cognate.model.mag import Past
from cognate.model.sight import Sight, Slots, additive, turns


@dataclass
class State:
    """After reading `position` tokens of each row. extend() writes into it; clone() first to go on in two ways.

    position:  int64 [batch]
    blocks:    a Past per block of the backbone
    recursion: its Window, None without recursion
    is_blank:  nothing has been read in any row
    """

    position: Tensor
    blocks: list[Past]
    recursion: Window | None
    is_blank: bool = True

    @classmethod
    def empty(cls, config: ModelConfig, batch: int, dtype: torch.dtype, device: torch.device) -> State:
        def window() -> Window:
            shape = batch, config.window, config.n_heads, config.d_model // config.n_heads
            return Window(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

        def memory() -> Tensor | None:
            shape = batch, config.memory_heads, config.memory_key_dim, config.memory_value_dim
            return torch.zeros(shape, device=device) if config.ltm else None

        blocks = [Past(window(), memory()) for _ in range(config.n_layers)]
        return cls(torch.zeros(batch, dtype=torch.long, device=device), blocks, window() if config.trm else None)

    def rows(self, index: Tensor) -> State:
        """A state of its own with these rows, in this order; int64 [row]. A row may come more than once."""

        def take(window: Window) -> Window:
            return Window(window.key[index], window.value[index])

        blocks = [Past(take(past.window), None if past.memory is None else past.memory[index]) for past in self.blocks]
        return State(self.position[index], blocks, None if self.recursion is None else take(self.recursion), self.is_blank)

    def clone(self) -> State:
        return copy.deepcopy(self)

    def put(self, index: Tensor, rows: State) -> None:
        """Replace rows by those of another state; int64 [row]"""
        self.position[index], self.is_blank = rows.position, self.is_blank and rows.is_blank
        windows = [(past.window, other.window) for past, other in zip(self.blocks, rows.blocks, strict=True)]
        if self.recursion is not None and rows.recursion is not None:
            windows.append((self.recursion, rows.recursion))
        for window, other in windows:
            window.key[index], window.value[index] = other.key, other.value
        for past, replacement in zip(self.blocks, rows.blocks, strict=True):
            if past.memory is not None and replacement.memory is not None:
                past.memory[index] = replacement.memory


def look_back(state: State, padding: Tensor | None, time: int, config: ModelConfig, dtype: torch.dtype) -> Sight:
    """The Sight of `time` tokens a row that continue what `state` has read.

    padding: bool [batch, time], tokens after a row's own; None where there are none
    """
    window, device = config.window, state.position.device
    here = state.position[:, None] + torch.arange(time, device=device)  # [batch, time]
    own = torch.ones_like(here, dtype=torch.bool) if padding is None else ~padding
    # Of tokens that share a slot only the newest is written: who wins otherwise is up to the kernel.
    written = own if time <= window else own & (own.flip(1).cumsum(1).flip(1) <= window)
    row, kept = written.nonzero(as_tuple=True)
    seen: Literal["call", "both", "window"] = "call" if state.is_blank else "window" if time == 1 else "both"
    last = state.position[:, None] - 1 + (own if seen == "window" else 0)  # [batch, 1]
    # Slot s holds the newest position that is s modulo the window; a negative one means that it is empty.
    held = last - (last - torch.arange(window, device=device)) % window  # [batch, slot]
    keys = {"call": here, "window": held, "both": torch.cat((held, here), dim=1)}[seen]
    behind = here[:, :, None] - keys[:, None, :]  # [batch, query, key]
    mask = (behind >= 0) & (behind < window) & (keys >= 0)[:, None]
    if padding is not None:
        mask[..., 0] |= ~mask.any(-1)  # a padding token must see something, lest it be NaN
    cosine, sine = turns(here, config.d_model // config.n_heads, config.rope_base, dtype)
    return Sight(cosine, sine, additive(mask, dtype), slots=Slots(row, kept, here[row, kept] % window, seen))
