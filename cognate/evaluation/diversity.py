"""How different the models of a group are, each measured on the same held-out texts: halting, memory, pace, predictions, weights.

The group's three metrics are spreads: the largest value among the models minus the smallest, over unrounded values. A spread of
0 says that the models do not differ in this; which of them is how is in the members.

Every text is read whole, without what a batch would add to it, and halting is adaptive, as when the model is used. Pace is measured in
turns, one token sequence of each model after another, so that whatever else the machine does meets all of them.

Source: docs/model.md, sections 1 (the required order) and 4 (metrics 35-37).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from statistics import fmean, quantiles
from typing import Any, Final

import torch
from torch import Tensor

from cognate.config import SPECIALISTS
from cognate.data.tokenizer import Tokenizer
from cognate.model import Cognate

MOST_TOKENS: Final = 512  # of a text that are read: as many as a row of training has
ROUNDS: Final = 8
TOKENS_A_TURN: Final = 24  # too few for a machine to change its mind in, enough for a median
RULE: Final = "reasoning >= memory > speed, in halting steps"


@dataclass(frozen=True)
class Member:
    """A model of the group. name: what it is called in the report; preset: decides its place in the required order"""

    name: str
    preset: str
    net: Cognate
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Text:
    """A held-out problem with its answer, encoded apart as in training. dataset: where it is from"""

    dataset: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Reading:
    """What a model does with the texts. Means over tokens; memory usage is a mean over texts, taken at their ends.

    halting_steps: recursions spent on a token; ltm_usage: 0..1; surprise_rate: 0..1, both None without a memory
    cross_entropy: nats/token of the last recursion; positions: how many tokens were read
    predictions: the likeliest next token at each position, of all texts end to end
    """

    halting_steps: float
    ltm_usage: float | None
    surprise_rate: float | None
    cross_entropy: float
    positions: int
    predictions: Tensor = field(repr=False)


@dataclass(frozen=True)
class Pace:
    """Milliseconds a token of cached generation, without the prompt's: the median and the quartiles around it."""

    median: float
    low: float
    high: float
    tokens: int


def diversity(
    members: Sequence[Member],
    texts: Sequence[Text],
    say: Callable[[str, float | None], None] = lambda sentence, fraction: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The report on a group as plain JSON: texts, members, pairs, the three metrics and whether the required order holds.

    clock: seconds; say: a sentence and how much is done, 0..1
    """
    if not texts:
        raise ValueError("there is no held-out text to measure diversity on")
    readings = []
    for number, member in enumerate(members):
        say(f"reading with {member.name}", number / (len(members) + 1))
        readings.append(read(member, texts))
    say("measuring the pace, in turns", len(members) / (len(members) + 1))
    paces = measure_paces(members, [text.prompt for text in texts], clock)
    return {
        "texts": {
            "count": len(texts),
            "by_dataset": {name: sum(text.dataset == name for text in texts) for name in sorted({text.dataset for text in texts})},
            "sha256": hashlib.sha256(repr([(text.prompt, text.answer) for text in texts]).encode()).hexdigest(),
        },
        "members": [_describe(*each) for each in zip(members, readings, paces, strict=True)],
        "pairs": [_pair(members[a], members[b], readings[a], readings[b]) for a, b in combinations(range(len(members)), 2)],
        "metrics": {
            "diversity_avg_halting_steps": spread([reading.halting_steps for reading in readings]),
            "diversity_ltm_usage": spread([reading.ltm_usage for reading in readings]),
            "diversity_inference_time_ms": spread([pace.median for pace in paces]),
        },
        "required_order": required_order(
            [(member.preset, reading.halting_steps) for member, reading in zip(members, readings, strict=True)]
        ),
    }


def spread(values: Sequence[float | None]) -> float | None:
    """The largest minus the smallest; None where fewer than two were measured."""
    measured = [value for value in values if value is not None]
    return max(measured) - min(measured) if len(measured) > 1 else None


def required_order(steps: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Whether the specialists think as long as they were meant to, compared with one another; steps: preset and recursions a token.

    `holds` is None, with the reason, unless each of the three is there once.
    """
    of = dict(steps)
    presets = [preset for preset, _ in steps]
    if odd := [name for name in SPECIALISTS if presets.count(name) != 1]:
        return {"rule": RULE, "holds": None, "absent": f"not one model of each specialist: {', '.join(odd)}"}
    return {"rule": RULE, "holds": of["reasoning"] >= of["memory"] > of["speed"]}


# --- one model --------------------------------------------------------------------------------------------


@torch.no_grad()
def read(member: Member, texts: Sequence[Text]) -> Reading:
    """Let the model read every text; it must be in eval mode."""
    assert not member.net.training, "a model in train mode would calibrate its halting head on held-out text"
    depths: list[Tensor] = []
    predictions: list[Tensor] = []
    usages: list[float] = []
    surprises = nats = 0.0
    for text in texts:
        tokens, targets = (part.to(member.net.embedding.weight.device) for part in _pairs(member.tokenizer, text))
        thought = member.net.extend(tokens)
        depths.append(thought.depths[0].cpu())
        predictions.append(member.net.logits(thought.answers[0])[:, : member.tokenizer.vocab_size].argmax(-1).cpu())
        loss = member.net.loss(tokens, targets, measure=True)
        assert loss.measurements is not None
        nats += float(loss.ce_last) * tokens.numel()
        if loss.measurements.ltm_memory_usage is not None and loss.measurements.ltm_surprise_rate is not None:
            usages.append(float(loss.measurements.ltm_memory_usage))
            surprises += float(loss.measurements.ltm_surprise_rate) * tokens.numel()
    every_depth = torch.cat(depths)
    positions = len(every_depth)
    return Reading(
        halting_steps=float(every_depth.double().mean()),
        ltm_usage=fmean(usages) if usages else None,
        surprise_rate=surprises / positions if usages else None,
        cross_entropy=nats / positions,
        positions=positions,
        predictions=torch.cat(predictions),
    )


def _pairs(tokenizer: Tokenizer, text: Text) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a text, int64 [1, time], the end token included."""
    ids = [*tokenizer.encode(text.prompt), *tokenizer.encode(text.answer), tokenizer.end_id][: MOST_TOKENS + 1]
    return torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])


def measure_paces(members: Sequence[Member], prompts: Sequence[str], clock: Callable[[], float]) -> list[Pace]:
    """The Pace of each model: ROUNDS rounds in which each has its turn at the same prompt, after one that does not count."""
    prompts = [prompt for prompt in prompts if prompt] or ["1"]
    seconds: list[list[float]] = [[] for _ in members]
    for turn in range(ROUNDS + 1):
        for each, member in zip(seconds, members, strict=True):
            took = _token_seconds(member, prompts[turn % len(prompts)], clock)
            each += took if turn else []
    return [_pace(each) for each in seconds]


def _token_seconds(member: Member, prompt: str, clock: Callable[[], float]) -> list[float]:
    """Seconds of each token but the first, which waits for the prompt to be read. The end token ends nothing: all models write as much."""
    encoded = member.tokenizer.encode(prompt)[:MOST_TOKENS]
    times = [clock() for _ in member.net.stream([encoded], TOKENS_A_TURN + 1, vocab_size=member.tokenizer.vocab_size)]
    return [after - before for before, after in pairwise(times)]


def _pace(seconds: Sequence[float]) -> Pace:
    low, median, high = (1000 * quartile for quartile in quantiles(seconds, n=4))
    return Pace(median, low, high, len(seconds))


def _describe(member: Member, reading: Reading, pace: Pace) -> dict[str, Any]:
    measured = {name: value for name, value in vars(reading).items() if name != "predictions"}
    return {"name": member.name, "preset": member.preset, **measured, "ms_per_token": asdict(pace)}


# --- two models -------------------------------------------------------------------------------------------


def _pair(one: Member, other: Member, our: Reading, their: Reading) -> dict[str, Any]:
    """How often they predict the same next token, and how far their weights are apart."""
    made: dict[str, Any] = {"of": [one.name, other.name], "agreement": None, "weights": weight_distance(one.net, other.net)}
    if one.tokenizer.digest == other.tokenizer.digest:
        made["agreement"] = float((our.predictions == their.predictions).double().mean())
    else:
        made["agreement_absent"] = "they have different tokenizers: a position in the one is none in the other"
    return made


@torch.no_grad()
def weight_distance(one: Cognate, other: Cognate) -> dict[str, Any]:
    """Distance of the weights that both have in the same shape, taken as one long vector each.

    relative_l2: ||a - b|| over the root mean square of ||a|| and ||b||: 0 for equal weights, about 1.41 for unrelated ones
    cosine:      a.b / (||a|| ||b||)
    """
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    shared = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    product = apart = ours_squared = theirs_squared = 0.0
    for name in shared:
        a, b = ours[name].detach().cpu().double(), theirs[name].detach().cpu().double()
        ours_squared, theirs_squared = ours_squared + float((a * a).sum()), theirs_squared + float((b * b).sum())
        product, apart = product + float((a * b).sum()), apart + float(((a - b) ** 2).sum())
    mean_square = (ours_squared + theirs_squared) / 2
    return {
        "relative_l2": math.sqrt(apart / mean_square) if mean_square else None,
        "cosine": product / math.sqrt(ours_squared * theirs_squared) if ours_squared and theirs_squared else None,
        "tensors": len(shared),
        "not_shared": sorted((ours.keys() | theirs.keys()) - set(shared)),
    }
