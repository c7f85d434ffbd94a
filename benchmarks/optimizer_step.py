"""One step of MuGrokfast beside the optimizers it could be replaced by: python -m benchmarks.optimizer_step.

    python -m benchmarks.optimizer_step --repeats 20 --threads 2
    python -m benchmarks.optimizer_step --device cuda --only mugrokfast --only adamw --json steps.json

All have the parameters of the shipped model, with random gradients of their own, and step in turns in one process, so that
whatever else the machine does falls on all alike; the ratio of two medians holds where a time alone does not. MuGrokfast clips
the global norm and skips what is not finite; torch's optimizers do neither, so one contestant does it before them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

# Before torch loads, for the reason in cognate/worker.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.sidebyside import describe_machine
from cognate.config import ModelConfig
from cognate.model import Cognate
from cognate.optimizer import MuGrokfast, kind_of

BASELINE = "muon+adamw"


@dataclass(frozen=True)
class Contestant:
    """What to time, and whose state to count."""

    step: Callable[[], None]
    optimizers: tuple[torch.optim.Optimizer, ...]


@dataclass(frozen=True)
class Figures:
    """Times are of one step; cpu_ms is the processor time of all threads together, which neighbours disturb less."""

    optimizer: str
    median_ms: float
    min_ms: float
    cpu_ms: float
    state_bytes: int
    ratio: float | None  # of medians, to BASELINE's


Builder = Callable[[nn.Module], Contestant]


def mugrokfast(**options: Any) -> Builder:
    def build(model: nn.Module) -> Contestant:
        optimizer = MuGrokfast(model.named_parameters(), **options)
        return Contestant(optimizer.step, (optimizer,))

    return build


def compiled_mugrokfast(model: nn.Module) -> Contestant:
    """Compiled in the warm-up, for minutes; the vectors' AdamW breaks its graph."""
    optimizer = MuGrokfast(model.named_parameters(), capturable=True)
    compiled = torch.compile(optimizer.step, dynamic=False)
    return Contestant(lambda: compiled(), (optimizer,))


def captured_mugrokfast(model: nn.Module) -> Contestant:
    """In a CUDA graph, as a loop may have it that keeps gradients in place. Captured in the third step, a warm-up."""
    optimizer, graph, number = MuGrokfast(model.named_parameters()), torch.cuda.CUDAGraph(), itertools.count()

    def step() -> None:
        match next(number):
            case 0 | 1:  # creates state, and lets libraries take their workspaces
                optimizer.step()
            case 2:
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    optimizer.step()
                graph.replay()
            case _:
                graph.replay()

    return Contestant(step, (optimizer,))


def adamw(model: nn.Module) -> Contestant:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    return Contestant(lambda: _step(optimizer), (optimizer,))


def muon_and_adamw(model: nn.Module) -> Contestant:
    matrices, rest = _split(model)
    muon = torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return _together(muon, torch.optim.AdamW(rest, fused=True))


def clipped_muon_and_adamw(model: nn.Module) -> Contestant:
    contestant = muon_and_adamw(model)

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        contestant.step()

    return Contestant(step, contestant.optimizers)


def heavyball_muon_and_adamw(model: nn.Module) -> Contestant:
    """As its users have it: heavyball compiles its steps, in the warm-up."""
    import heavyball  # type: ignore[import-untyped, unused-ignore]

    matrices, rest = _split(model)
    return _together(heavyball.Muon(matrices, lr=1e-3, weight_decay=0.01), torch.optim.AdamW(rest, fused=True))


CONTESTANTS: Mapping[str, Builder] = {
    "mugrokfast": mugrokfast(),
    "mugrokfast lambda=0": mugrokfast(grokfast_lambda=0.0),
    "mugrokfast bf16 state": mugrokfast(state_dtype=torch.bfloat16),
    "mugrokfast captured": captured_mugrokfast,
    "mugrokfast compiled": compiled_mugrokfast,
    "muon+adamw": muon_and_adamw,
    "muon+adamw after clip": clipped_muon_and_adamw,
    "heavyball muon+adamw": heavyball_muon_and_adamw,
    "adamw": adamw,
}


def measure(
    names: Sequence[str], device: torch.device, *, repeats: int, warmups: int, grad_norm: float, config: ModelConfig | None = None
) -> list[Figures]:
    """Figures of each, in the order given; `repeats` rounds of one step each, after `warmups` that do not count."""
    # Freed, 31 MiB teach glibc to keep memory of that size for reuse, as a training process's activations have by its first
    # step; without them a sixth of MuGrokfast's time is page faults.
    torch.empty(31 * 2**18).fill_(0.0)
    models = [_model(device, grad_norm, config or ModelConfig()) for _ in names]
    gradients = [[parameter.grad for parameter in model.parameters()] for model in models]
    contestants = [CONTESTANTS[name](model) for name, model in zip(names, models, strict=True)]
    laps: list[list[tuple[float, float]]] = [[] for _ in names]
    for number in range(warmups + repeats):
        for kept, contestant, model, own in zip(laps, contestants, models, gradients, strict=True):
            for parameter, gradient in zip(model.parameters(), own, strict=True):
                parameter.grad = gradient  # heavyball takes gradients away
            lap = _timed(contestant.step, device)
            if number >= warmups:
                kept.append(lap)
    medians = {name: median(wall for wall, _ in kept) for name, kept in zip(names, laps, strict=True)}
    base = medians.get(BASELINE)
    return [
        Figures(
            name,
            medians[name],
            min(wall for wall, _ in kept),
            median(processor for _, processor in kept),
            sum(state_bytes(optimizer) for optimizer in contestant.optimizers),
            medians[name] / base if base else None,
        )
        for name, kept, contestant in zip(names, laps, contestants, strict=True)
    ]


def installed(device: torch.device) -> list[str]:
    """All contestants but the one that compiles for minutes, what needs a GPU, and what is not installed, which is said."""
    names = [name for name in CONTESTANTS if name != "mugrokfast compiled" and (device.type == "cuda" or name != "mugrokfast captured")]
    if find_spec("heavyball"):
        return names
    print("without heavyball, which is not installed: pip install -e '.[bench]'", file=sys.stderr)
    return [name for name in names if not name.startswith("heavyball")]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all tensors an optimizer keeps, each counted once however often it is referred to."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, Tensor)}
    return sum(tensor.nbytes for tensor in tensors.values())


def table(figures: Sequence[Figures]) -> Table:
    drawn = Table(title="One optimizer step, 26,974,561 parameters")
    for heading in ("optimizer", "median ms", "min ms", "cpu ms", "state MiB", f"x {BASELINE}"):
        drawn.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for each in figures:
        times = (f"{value:.1f}" for value in (each.median_ms, each.min_ms, each.cpu_ms))
        drawn.add_row(each.optimizer, *times, f"{each.state_bytes / 2**20:.0f}", f"{each.ratio:.2f}" if each.ratio else "-")
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    figures = measure(
        options.only or installed(device), device, repeats=options.repeats, warmups=options.warmups, grad_norm=options.grad_norm
    )
    machine = describe_machine(device)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    console.print(table(figures))
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if options.json:
        result = {"machine": machine, "grad_norm": options.grad_norm, "repeats": options.repeats}
        options.json.write_text(json.dumps({**result, "figures": [asdict(each) for each in figures]}, indent=2) + "\n")


def _model(device: torch.device, grad_norm: float, config: ModelConfig) -> nn.Module:
    """The shipped model, every parameter with a random gradient; their global norm is `grad_norm`."""
    torch.manual_seed(0)
    model = Cognate(config).to(device)
    scale = grad_norm / sum(parameter.numel() for parameter in model.parameters()) ** 0.5
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return model


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(what MuGrokfast orthogonalises, the rest)"""
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        parts[kind_of(name, parameter) != "matrix"].append(parameter)
    return parts


def _together(*optimizers: torch.optim.Optimizer) -> Contestant:
    def step() -> None:
        for optimizer in optimizers:
            _step(optimizer)

    return Contestant(step, optimizers)


def _step(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def _timed(step: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """(wall, processor) milliseconds of one step."""
    _wait(device)
    began, processor_began = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return (time.perf_counter() - began) * 1e3, (time.process_time() - processor_began) * 1e3


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.optimizer_step", description="ms a step and bytes of state, side by side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--repeats", type=int, default=15, help="measured steps of each (default: 15)")
    parser.add_argument("--warmups", type=int, default=3, help="steps of each before that (default: 3)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's choice)")
    parser.add_argument("--grad-norm", type=float, default=2.0, help="of the gradients; above 1 they are clipped (default: 2)")
    parser.add_argument("--only", action="append", choices=list(CONTESTANTS), help="one contestant; may be repeated (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    return parser


if __name__ == "__main__":
    main()
