"""How fast Cognate writes: `make bench-decode`, or python -m benchmarks.decode [--checkpoint DIRECTORY ...].

In one process, all models at once, in an order that is drawn anew for each round: recomputing everything for each token (what a model
without a state has to do), reading on from a state with one, two, three recursions a token, and as deep as the halting head wants. A
new model's head never halts, so without a checkpoint the last line shows what the deciding costs; trained models read a text like that
they were trained on, and write on.
Times are of one new token after `--length` tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# Before torch loads, for the reason in cognate/worker.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.sidebyside import describe_machine
from cognate.config import resolve
from cognate.model import Cognate
from cognate.precision import use_whole_vectors
from cognate.training.checkpoint import load_model

Way = TypeVar("Way")
TEXT = (
    "Question: Ana has 12 pencils and gives 4 of them to Ben. Ben then buys 3 boxes with 5 pencils in each. "
    "How many pencils do Ana and Ben have together?\nAnswer: Ana keeps 12-4=8 pencils. Ben has 4+3*5=19. Together they have 8+19=27.\n\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, nargs="*", help="trained models; else a new one of reasoning and of speed")
    parser.add_argument("--length", type=int, default=256, help="tokens read before the one that is timed")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line a way")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.checkpoint:
        models = {str(path): trained(path, options.length) for path in options.checkpoint}
    else:
        models = {preset: (new_model(preset), torch.randint(512, (options.length,))) for preset in ("reasoning", "speed")}
    table = Table("model", "batch", "way", "ms a step", "ms a token", "times recomputing", "recursions")
    use_whole_vectors(device)  # as `cognate generate`
    for model, _ in models.values():
        model.to(device).eval()
    for batch in options.batch:
        ways = {
            (name, way): both
            for name, (model, text) in models.items()
            for way, both in ways_of(model, text.to(device).expand(batch, -1)).items()
        }
        figures = race({each: step for each, (step, _) in ways.items()}, options.repeats, device)
        for (name, way), milliseconds in figures.items():
            ratio, depth = figures[name, "recompute"] / milliseconds, ways[name, way][1]()
            table.add_row(name, str(batch), way, f"{milliseconds:.1f}", f"{milliseconds / batch:.2f}", f"{ratio:.1f}", f"{depth:.2f}")
            if options.json:
                with options.json.open("a") as file:
                    line = {"model": name, "batch": batch, "way": way, "step_ms": milliseconds, "recursions": depth}
                    file.write(json.dumps({**line, "length": options.length, "machine": describe_machine(device)}) + "\n")
    Console(width=120).print(table)
    Console(width=120).print(", ".join(f"{key} {value}" for key, value in describe_machine(device).items()), f"length {options.length}")


def new_model(preset: str) -> Cognate:
    torch.manual_seed(0)
    return Cognate(resolve(preset).model)


def trained(path: Path, length: int) -> tuple[Cognate, torch.Tensor]:
    """The model of a checkpoint, and `length` tokens of text, with their end at the end."""
    model, tokenizer = load_model(path)
    tokens = tokenizer.encode(TEXT * (1 + length // 16))
    return model, torch.tensor(tokens[-length:])


def ways_of(model: Cognate, tokens: torch.Tensor) -> dict[str, tuple[Callable[[], object], Callable[[], float]]]:
    """Each way of finding the next token, and how deep it went."""
    cap = model.config.recursions
    with torch.no_grad():
        start = model.extend(tokens[:, :-1]).state

    @torch.no_grad()
    def recompute() -> None:
        read = model.extend(tokens, adaptive=False)  # all tokens anew, the vocabulary for the last one only
        model.logits(read.answers[:, -1]).argmax(-1)

    def read_on(recursions: int, *, adaptive: bool) -> tuple[Callable[[], None], Callable[[], float]]:
        state, last, depths = start.clone(), tokens[:, -1:], []

        @torch.no_grad()
        def step() -> None:
            nonlocal state, last
            read = model.extend(last, state, adaptive=adaptive, recursions=recursions)
            state, last = read.state, model.logits(read.answers[:, -1]).argmax(-1, keepdim=True)
            depths.append(read.depths)

        return step, lambda: float(torch.stack(depths).float().mean())

    forced = {f"cached, {recursions} recursions": read_on(recursions, adaptive=False) for recursions in range(1, cap + 1)}
    return {"recompute": (recompute, lambda: float(cap)), **forced, "cached, halting": read_on(cap, adaptive=True)}


def race(ways: dict[Way, Callable[[], object]], repeats: int, device: torch.device) -> dict[Way, float]:
    """Median milliseconds of each, after one untimed round. Whoever comes after a recomputation finds its caches full of that: so
    the order is another one each round."""
    times: dict[Way, list[float]] = {way: [] for way in ways}
    order = random.Random(0)  # noqa: S311 - the same orders each time
    for number in range(repeats + 1):
        for way, step in order.sample(list(ways.items()), len(ways)):
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                times[way].append(1000 * (time.perf_counter() - began))
    return {way: statistics.median(each) for way, each in times.items()}


if __name__ == "__main__":
    main()
