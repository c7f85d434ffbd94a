"""Generation: prompts of any lengths in, a new token at a time for all of them, each after as much thought as it takes.

`stream` yields tokens as they come, `generate` collects them; both are methods of Cognate. A row that has stopped costs nothing
more, and what a row says depends on its prompt, its number and the seed, not on who else is in the batch: bit for bit so only as far
as the kernels round alike in any company: in bfloat16 they do not, and a single row is at times rounded otherwise than one of many.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cognate.model.state import State

if TYPE_CHECKING:
    from cognate.model.cognate import Cognate


class NewToken(NamedTuple):
    """A token that continues prompt `row`, and how many recursions were spent on choosing it."""

    row: int
    token: int
    depth: int


@dataclass(frozen=True)
class Generation:
    """The new tokens of each row, a stop token included, and the recursions spent on each.

    state: after all but the last new token of each row; a prompt that goes on from it begins with that token.
    """

    tokens: list[list[int]]
    depths: list[list[int]]
    state: State = field(repr=False)


def generate(
    model: Cognate,
    prompt_tokens: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    stop: Collection[int] = (),
    *,
    seed: int | Sequence[int] = 0,
    vocab_size: int | None = None,
    state: State | None = None,
    adaptive: bool = True,
    recursions: int | None = None,
    revise: Callable[[int, int], int] | None = None,
) -> Generation:
    """Continue each prompt up to a token in `stop`, or by max_new_tokens; by none, and nothing is read.

    temperature, top_k: 0 takes the likeliest token; else one is drawn, from the top_k likeliest or (None) from all
    seed: of the draws; one for each prompt (see seed_of_row) makes what it draws independent of its place
    revise: is told each row and its new token, and returns the token to take instead, most often the same
    vocab_size: tokens that the tokenizer has, where they are fewer than the model's; no other is chosen
    state: what was read before the prompts, written into; None: they are beginnings
    adaptive, recursions: as in Cognate.extend()
    """
    state = _blank(model, len(prompt_tokens)) if state is None else state
    tokens: list[list[int]] = [[] for _ in prompt_tokens]
    depths: list[list[int]] = [[] for _ in prompt_tokens]
    for row, token, depth in stream(
        model, prompt_tokens, max_new_tokens, temperature=temperature, top_k=top_k, stop=stop, seed=seed, vocab_size=vocab_size,
        state=state, adaptive=adaptive, recursions=recursions, revise=revise,
    ):  # fmt: skip
        tokens[row].append(token)
        depths[row].append(depth)
    return Generation(tokens, depths, state)


@torch.no_grad()
def stream(
    model: Cognate,
    prompt_tokens: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    stop: Collection[int] = (),
    *,
    seed: int | Sequence[int] = 0,
    vocab_size: int | None = None,
    state: State | None = None,
    adaptive: bool = True,
    recursions: int | None = None,
    revise: Callable[[int, int], int] | None = None,
) -> Iterator[NewToken]:
    """generate(), as it happens: the rows that have not stopped take turns. `state` is whole when all have stopped."""
    if not prompt_tokens or not all(prompt_tokens):
        raise ValueError("there must be at least one prompt, and none may be empty: the model was never told how texts begin")
    if vocab_size is not None and vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}; a tokenizer has at least one token")
    if not temperature >= 0 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature is {temperature} and top_k {top_k}; they must be at least 0 and 1")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 0")
    rows = range(len(prompt_tokens))
    seeds = [seed_of_row(seed, row) for row in rows] if isinstance(seed, int) else seed
    if len(seeds) != len(rows):
        raise ValueError(f"there are {len(seeds)} seeds for {len(rows)} prompts; one for all, or one for each")
    device = model.embedding.weight.device
    whole = _blank(model, len(prompt_tokens)) if state is None else state
    # The rows that have not stopped, and their state. Who goes on is decided on the CPU.
    going, current = torch.arange(len(prompt_tokens), device="cpu"), whole
    lengths = torch.tensor([len(prompt) for prompt in prompt_tokens], device="cpu")
    fed = pad_sequence([torch.tensor(prompt, device="cpu") for prompt in prompt_tokens], batch_first=True)
    generators = [torch.Generator().manual_seed(own) for own in seeds]
    for left in reversed(range(max_new_tokens)):
        own = lengths.to(device) if fed.size(1) > 1 else None  # a single token is never padding
        read = model.extend(fed.to(device), current, own, adaptive=adaptive, recursions=recursions)
        last = torch.arange(len(going), device=device), lengths.to(device) - 1
        draw = torch.zeros(len(going), device="cpu")
        if temperature:
            draw = torch.cat([torch.rand(1, generator=generators[row], device="cpu") for row in going.tolist()])
        new = choose(model.logits(read.answers[last])[:, :vocab_size], draw.to(device), temperature, top_k).cpu()
        if revise is not None:
            new = torch.tensor([revise(row, token) for row, token in zip(going.tolist(), new.tolist(), strict=True)], device="cpu")
        yield from map(NewToken, going.tolist(), new.tolist(), read.depths[last].tolist())
        goes_on = torch.tensor([token not in stop and left > 0 for token in new.tolist()], device="cpu")
        if not goes_on.all():
            if current is not whole:
                whole.put(going[~goes_on], current.rows((~goes_on).nonzero()[:, 0]))
            current = current.rows(goes_on.nonzero()[:, 0])
        going, fed = going[goes_on], new[goes_on, None]
        lengths = torch.ones_like(going)
        if not len(going):
            return


def choose(logits: Tensor, draw: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The next token of each row.

    logits: [row, vocabulary]; draw: [row], uniform in 0..1, decides where the temperature leaves a choice
    """
    if temperature == 0:
        return logits.argmax(-1)
    values, tokens = logits.topk(min(top_k or logits.size(-1), logits.size(-1)), dim=-1)  # likeliest first
    cumulated = torch.softmax(values.double() / temperature, dim=-1).cumsum(-1)
    place = (cumulated < draw[:, None] * cumulated[:, -1:]).sum(-1, keepdim=True)
    return tokens.gather(1, place)[:, 0]


def seed_of_row(seed: int, row: int) -> int:
    """The row's own, the same however many there are; of neighbouring seeds, far apart."""
    return (seed * 0x9E3779B97F4A7C15 + row) % 2**63


def _blank(model: Cognate, batch: int) -> State:
    return State.empty(model.config, batch, model.compute_dtype, model.embedding.weight.device)
