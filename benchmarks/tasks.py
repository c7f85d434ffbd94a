"""What the memory and the recursion are worth where they should be worth most: two made-up tasks.

    make bench-tasks ARGS="RESULTS.jsonl [recall hops]"

    recall  pairs of a key and a value, then filler, then the keys again: which value? With a window of 16 the pairs lie outside of
            what attention sees from there, block by block, so without a memory nobody can know (1/16 by chance); a window over
            everything is there to compare with.
    hops    a cycle through nine symbols, told as its nine steps in any order; then, k from 1 to 4: where are you k steps after
            this one? Each step must be looked up with the outcome of the one before, which takes another layer, or recursion.
            k is 1 at first, and one more whenever nine of ten answers at the largest k are right.

Small models (width 64) trained from new by MuGrokfast, lambda 0, at the same rates, which were not tuned. Every outcome is one line of
RESULTS.jsonl and is never computed twice.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.trials import SEEDS, VECTOR_LR, WEIGHT_DECAY, Book
from cognate.config import TrainingConfig, parse
from cognate.model import NOT_COUNTED, Cognate
from cognate.model.act import halting_depths
from cognate.optimizer import MuGrokfast
from cognate.training.schedule import lr_scale

SMALL = {
    "d_model": 64, "n_heads": 2, "d_ff": 256, "trm_d_ff": 256, "memory_key_dim": 16, "memory_value_dim": 32,
    "supervised_fraction": 1.0, "act_delta": 0.05,
}  # fmt: skip
MATRIX_LR, EMBEDDING_LR = 5e-3, 1e-2  # of all
HELD_OUT = 256  # rows
HELD_OUT_SEED, WATCHED_SEED = 1_000_001, 1_000_002  # of the rows that are reported, and of those that decide when k grows
LOOK_EVERY = 50  # steps
MASTERED = 0.9
HALTING = 0.5  # threshold


class Rows(NamedTuple):
    """tokens, targets: int64 [row, time]; level: int64 [row, question], how hard the question is, from 1

    A row ends with its questions, one token each.
    """

    tokens: Tensor
    targets: Tensor
    level: Tensor


@dataclass(frozen=True)
class Recall:
    """rows: in a step's batch; levels: of the hardest question; vocabulary: how many tokens there are"""

    keys: int = 16
    values: int = 16
    pairs: int = 8
    filler: int = 64
    noise: int = 64  # different tokens the filler is made of
    levels: int = 1
    rows: int = 32

    @property
    def vocabulary(self) -> int:
        return self.keys * self.values + self.keys + self.noise + self.values

    def draw(self, rows: int, levels: int, generator: torch.Generator) -> Rows:
        """levels: no question is harder"""
        keys = shuffled(rows, self.keys, generator)[:, : self.pairs]
        values = torch.randint(self.values, (rows, self.pairs), generator=generator)
        first_key = self.keys * self.values  # a pair is one token, so that nobody has to find out what belongs together
        filler = first_key + self.keys + torch.randint(self.noise, (rows, self.filler), generator=generator)
        asked = shuffled(rows, self.pairs, generator)
        tokens = torch.cat([keys * self.values + values, filler, first_key + keys.gather(1, asked)], 1)
        answers = first_key + self.keys + self.noise + values.gather(1, asked)
        return Rows(tokens, at_the_end(answers, tokens), torch.ones_like(asked))


@dataclass(frozen=True)
class Hops:
    """As Recall."""

    symbols: int = 9  # four steps forward are fewer than five back
    questions: int = 16
    levels: int = 4
    rows: int = 64

    @property
    def vocabulary(self) -> int:
        return self.symbols * (self.symbols + self.levels + 1)

    def draw(self, rows: int, levels: int, generator: torch.Generator) -> Rows:
        cycle = shuffled(rows, self.symbols, generator)
        after = torch.empty_like(cycle).scatter_(1, cycle, cycle.roll(-1, 1))
        order = shuffled(rows, self.symbols, generator)
        steps = order * self.symbols + after.gather(1, order)
        level = torch.randint(1, levels + 1, (rows, self.questions), generator=generator)
        symbol = torch.randint(self.symbols, (rows, self.questions), generator=generator)
        tokens = torch.cat([steps, (self.symbols + level - 1) * self.symbols + symbol], 1)
        for number in range(levels):
            symbol = torch.where(number < level, after.gather(1, symbol), symbol)
        answers = (self.symbols + self.levels) * self.symbols + symbol
        return Rows(tokens, at_the_end(answers, tokens), level)


Task = Recall | Hops


def shuffled(rows: int, number: int, generator: torch.Generator) -> Tensor:
    """0..number-1 in another order in each row: int64 [row, number]"""
    return torch.rand(rows, number, generator=generator).argsort(1)


def at_the_end(answers: Tensor, tokens: Tensor) -> Tensor:
    targets = torch.full_like(tokens, NOT_COUNTED)
    targets[:, -answers.size(1) :] = answers
    return targets


@dataclass(frozen=True)
class Trial:
    """steps: of training; options: of the model"""

    options: dict[str, Any]
    steps: int


@dataclass(frozen=True)
class Outcome:
    """Of the last step, by level: share of right answers; and the recursions a question takes with halting, and its answers then.

    reached: the largest level that was trained on, by step; what is right beyond the last is luck
    """

    right: list[float]
    recursions_with_halting: list[float]
    right_with_halting: list[float]
    reached: dict[int, int]
    parameters: int
    step_ms: float


def run(task: Task, trial: Trial, seed: int) -> dict[str, Any]:
    """An Outcome."""
    config = parse({"preset": "reasoning", "model": {**SMALL, "vocab_size": max(258, task.vocabulary), **trial.options}})
    torch.manual_seed(seed)
    model = Cognate(config.model)
    optimizer = MuGrokfast(
        model.named_parameters(),
        muon_lr=MATRIX_LR,
        embedding_lr=EMBEDDING_LR,
        adamw_lr=VECTOR_LR,
        weight_decay=WEIGHT_DECAY,
        grokfast_lambda=0.0,
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    held_out, watched = (task.draw(HELD_OUT, task.levels, torch.Generator().manual_seed(of)) for of in (HELD_OUT_SEED, WATCHED_SEED))
    levels, reached, seconds = 1, {0: 1}, []
    for step in range(1, trial.steps + 1):
        began = time.perf_counter()
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * lr_scale(step, trial.steps, TrainingConfig())
        rows = task.draw(task.rows, levels, generator)
        model.train().zero_grad(set_to_none=True)
        model.loss(rows.tokens, rows.targets).loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        if step % LOOK_EVERY == 0 and levels < task.levels and look(model, watched, task.levels)["right"][levels - 1] >= MASTERED:
            levels += 1
            reached[step] = levels
    parameters, step_ms = sum(parameter.numel() for parameter in model.parameters()), 1000 * statistics.median(seconds)
    return asdict(Outcome(**look(model, held_out, task.levels), reached=reached, parameters=parameters, step_ms=step_ms))


@torch.no_grad()
def look(model: Cognate, rows: Rows, levels: int) -> dict[str, list[float]]:
    """Outcome.right and what halting makes of it; by the full pass, which gives what reading with halting gives (tests/model)."""
    model.eval()
    questions = rows.level.size(1)
    thoughts, _ = model._think(rows.tokens, *model._surroundings(rows.tokens, torch.zeros_like(rows.tokens[:1])))
    chosen = torch.stack([model.logits(thought.answer[:, -questions:]).argmax(-1) for thought in thoughts])
    right = (chosen == rows.targets[:, -questions:]).float()  # [recursion, row, question]
    depth = torch.full_like(rows.level, len(thoughts))
    if model.halting is not None:
        latents = torch.stack([thought.latent[:, -questions:] for thought in thoughts])
        depth = halting_depths(model.halting.probabilities(model.halting(latents)), HALTING)
    found = {"right": right[-1], "recursions_with_halting": depth.float(), "right_with_halting": right.gather(0, depth[None] - 1)[0]}
    return {name: [round(float(values[rows.level == level].mean()), 4) for level in range(1, levels + 1)] for name, values in found.items()}


PLAIN = {"trm": False, "act": False}
STUDIES: dict[str, tuple[Task, dict[str, Trial]]] = {
    "recall": (
        Recall(),
        {
            "plain": Trial({"n_layers": 2, "window": 16, "ltm": False, **PLAIN}, 1600),
            "memory": Trial({"n_layers": 2, "window": 16, **PLAIN}, 1600),
            "plain, a window over everything": Trial({"n_layers": 2, "window": 128, "ltm": False, **PLAIN}, 1600),
        },
    ),
    "hops": (
        Hops(),
        {
            "1 block": Trial({"n_layers": 1, "ltm": False, **PLAIN}, 2000),
            "3 blocks": Trial({"n_layers": 3, "ltm": False, **PLAIN}, 2000),
            "10 blocks": Trial({"n_layers": 10, "ltm": False, **PLAIN}, 2000),
            "1 block, recursion": Trial({"n_layers": 1, "ltm": False}, 2000),
        },
    ),
}


def study(book: Book, name: str) -> None:
    task, trials = STUDIES[name]
    for seed in SEEDS:  # a study that is cut short has compared all on the first seed
        for part, trial in trials.items():
            told = json.dumps([asdict(task), asdict(trial), SMALL, MATRIX_LR, EMBEDDING_LR], sort_keys=True)
            outcome = book.note(f"{name}: {part}, seed {seed}, {told}", partial(run, task, trial, seed))
            print(f"{name}: {part}, seed {seed}", outcome, flush=True)


def main() -> None:
    path, *names = sys.argv[1:]
    for name in names or STUDIES:
        study(Book(Path(path)), name)


if __name__ == "__main__":
    main()
