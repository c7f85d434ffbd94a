"""What a model says of prompts: text that continues them, how likely given continuations are, how well it reads on.

A prompt is read once, and all its candidates go on from its state. Items are taken longest first, in batches of similar
lengths; what comes out for one does not depend on the others. Every token gets all recursions, as in validation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.calculator import Calculator
from cognate.model import Cognate

_SCORED_AT_ONCE = 512  # positions whose logits are in memory together


@dataclass(frozen=True)
class Batching:
    """How much goes through the model at once: speed and memory, not results. before_each: called before each batch"""

    rows: int = 32
    tokens: int = 8192
    before_each: Callable[[], None] = lambda: None


USUAL: Final = Batching()


@dataclass(frozen=True)
class Likelihood:
    """nats: log-likelihood of a continuation; hits: how many of its tokens are the likeliest"""

    nats: float
    tokens: int
    hits: int

    @property
    def is_greedy(self) -> bool:
        return self.hits == self.tokens


def continue_texts(
    model: Cognate,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    batching: Batching = USUAL,
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    calculator: bool = False,
) -> list[str]:
    """What the model writes after each prompt, up to the end token: the likeliest token each time, or at a temperature above 0 one
    that is drawn, by the prompt's own seed. With a calculator, it works out "<<expression=".
    """
    encoded = tokenizer.encode_batch(prompts)
    texts = [""] * len(prompts)
    for batch in _batches([len(prompt) for prompt in encoded], batching):
        made = model.generate(
            [encoded[index] for index in batch], max_new_tokens, stop={tokenizer.end_id}, vocab_size=tokenizer.vocab_size, adaptive=False,
            temperature=temperature, seed=[seeds[index] for index in batch] if seeds is not None else 0,
            revise=Calculator(tokenizer, len(batch)) if calculator else None,
        )  # fmt: skip
        for index, tokens in zip(batch, made.tokens, strict=True):
            texts[index] = tokenizer.decode(tokens)
    return texts


def likelihoods(
    model: Cognate,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    batching: Batching = USUAL,
) -> list[list[Likelihood]]:
    """The likelihood of each candidate after its prompt. Both are encoded apart, as in training."""
    heads = tokenizer.encode_batch(prompts)
    tails = [tokenizer.encode_batch(list(each)) for each in candidates]
    found: list[list[Likelihood]] = [[] for _ in prompts]
    widest = max((len(each) for each in tails), default=1)
    lengths = [len(head) + widest * max(map(len, each)) for head, each in zip(heads, tails, strict=True)]
    for batch in _batches(lengths, replace(batching, rows=max(1, batching.rows // widest))):
        for index, scored in zip(batch, _score_batch(model, [heads[at] for at in batch], [tails[at] for at in batch]), strict=True):
            found[index] = scored
    return found


def read_on(model: Cognate, tokenizer: Tokenizer, texts: Sequence[str], batching: Batching = USUAL) -> list[Likelihood]:
    """The likelihood of each whole text and its end token, but for the first token: nothing tells how texts begin."""
    encoded = tokenizer.encode_batch(texts)
    found = [Likelihood(0.0, 0, 0)] * len(texts)
    for batch in _batches([len(tokens) for tokens in encoded], batching):
        tails = [[[*encoded[index][1:], tokenizer.end_id]] for index in batch]
        for index, (scored,) in zip(batch, _score_batch(model, [encoded[index][:1] for index in batch], tails), strict=True):
            found[index] = scored
    return found


@torch.no_grad()
def _score_batch(model: Cognate, heads: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]]) -> list[list[Likelihood]]:
    """Heads are prompts, tails their candidates, in tokens; none is empty."""
    device = model.embedding.weight.device
    tokens, lengths = _padded(heads, device)
    read = model.extend(tokens, None, lengths, adaptive=False)
    owners = torch.tensor([number for number, each in enumerate(tails) for _ in each], device=device)
    last = read.answers[torch.arange(len(heads), device=device), lengths - 1]  # [head, width]
    flat = [list(tail) for each in tails for tail in each]
    targets, counts = _padded(flat, device)  # [tail, time]
    answers = last[owners][:, None]  # [tail, 1, width]
    if targets.size(1) > 1:
        state = read.state.rows(owners)
        del read
        answers = torch.cat([answers, model.extend(targets[:, :-1], state, counts - 1, adaptive=False).answers], dim=1)
    own = torch.arange(targets.size(1), device=device) < counts[:, None]  # [tail, time]
    nats, hits = _score(model, answers[own], targets[own])
    scores = iter(zip(torch.split(nats, counts.tolist()), torch.split(hits, counts.tolist()), strict=True))
    return [
        [Likelihood(float(each.double().sum()), len(each), int(hit.sum())) for each, hit in (next(scores) for _ in few)] for few in tails
    ]


def _score(model: Cognate, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each target, and whether it is the likeliest token; answers: [position, width], targets: int64 [position]"""
    nats, hits = [], []
    for some, wanted in zip(torch.split(answers, _SCORED_AT_ONCE), torch.split(targets, _SCORED_AT_ONCE), strict=True):
        logits = model.logits(some)  # [position, vocabulary]
        nats.append(torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0].cpu())
        hits.append((logits.argmax(-1) == wanted).cpu())
    return torch.cat(nats), torch.cat(hits)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(tokens [row, time], lengths [row])"""
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return tokens.to(device), torch.tensor([len(row) for row in rows], device=device)


def _batches(lengths: Sequence[int], batching: Batching) -> Iterator[list[int]]:
    """Numbers of rows that go together, longest first; no batch has more rows or, padded, more tokens than allowed."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) >= batching.rows or (len(batch) + 1) * lengths[batch[0]] > batching.tokens):
            batching.before_each()
            yield batch
            batch = []
        batch.append(index)
    if batch:
        batching.before_each()
        yield batch
