"""How fast Cognate trains beside its rivals: `make bench-train`, or python -m benchmarks.train.

    make bench-train ARGS="--precision bf16 --repeats 9"
    make bench-train ARGS="--batch 16 --repeats 1 --only ours ours-compiled --json results.jsonl"     # peak memory at 16 x 512

Each model is in a process of its own, and they step in turns (sidebyside.py), at one precision after the other. Who waits holds its
memory: of large batches, all want more at once than one after the other would. Who takes part, and how each was set up, is in
rivals.py. Ours gets the same tokens packed as documents, as in real use; rivals have no packing.
FLOP/s are those of forward and backward over their time; the optimizer's work is not counted, and its time is a column of its own.
"fastest" is the ratio of the fastest steps: who takes memory anew in each step is at times slowed by the machine, who keeps it is not.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

# Before torch loads, for the reason in cognate/worker.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rivals import BASELINE, CONTESTANTS, PACKAGES, VOCAB_SIZE, Builder, RivalMissing, Setting
from benchmarks.sidebyside import Batch, Contestant, Lap, Precision, Seat, SeatLost, count_flops, describe_machine, race, random_batch

ROOT = Path(__file__).resolve().parents[1]
_say = functools.partial(print, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Options:
    """batch: rows; length: tokens in a row"""

    batch: int = 4
    length: int = 512
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    repeats: int = 5
    warmups: int = 1
    threads: int | None = None
    device: str = "cpu"
    compiled: bool = False
    plain: bool = False
    only: tuple[str, ...] = tuple(CONTESTANTS)


@dataclass(frozen=True)
class Figures:
    """What was found of one model at one precision; times are medians over the repeats but where they are named otherwise."""

    model: str
    precision: Precision
    parameters: int
    tokens_per_s: float
    step_ms: float
    step_ms_min: float
    passes_ms: float
    optimizer_ms: float
    flops_per_token: float
    flops_per_s: float
    peak_bytes: int
    loss_first: float | None  # None: not a finite number
    loss_last: float | None
    losses_are_finite: bool
    tokens_per_s_ratio: float | None = None  # to the baseline at the same precision
    fastest_ratio: float | None = None  # the same of the fastest steps
    flops_per_s_ratio: float | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    options = _options(parsed)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        code = _code()  # before, not after: these are the files that were imported
        figures = measure(options)
    except (RivalMissing, SeatLost) as error:
        sys.exit(str(error))
    machine = describe_machine(torch.device(options.device))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    console.print(table(figures, options))
    console.print(", ".join(f"{name} {value}" for name, value in {**machine, "code": code}.items()))
    if parsed.json:
        with parsed.json.open("a") as file:
            file.writelines(f"{line}\n" for line in json_lines(figures, options, machine, code, datetime.now(UTC)))
    return 0 if all(each.losses_are_finite for each in figures) else 1


def measure(options: Options, builders: Mapping[str, Builder] = CONTESTANTS, vocab_size: int = VOCAB_SIZE) -> list[Figures]:
    """Figures of every model that is asked for, at every precision, with their ratios to the baseline's."""
    make_batch = functools.partial(_batch, options, vocab_size)
    found = []
    for precision in options.precisions:
        _say(f"{len(options.only)} models at {options.batch} x {options.length} in {precision}; counting FLOPs")
        costs = [_cost(builders[name], options, make_batch(), precision) for name in options.only]
        with ExitStack() as seats:
            taken = [
                seats.enter_context(Seat(name, functools.partial(_seated, builders[name], options), make_batch, precision))
                for name in options.only
            ]
            laps = race([seat.lap for seat in taken], warmups=options.warmups, repeats=options.repeats, say=_say)
            peaks = [seat.peak() for seat in taken]
        found += [_figures(*each, precision, options) for each in zip(options.only, costs, laps, peaks, strict=True)]
    return compare(found)


def _seated(build: Builder, options: Options) -> Contestant:
    if options.threads:
        torch.set_num_threads(options.threads)
    return build(_setting(options))


def compare(figures: Sequence[Figures]) -> list[Figures]:
    """The same with the ratios to BASELINE at the same precision; without it among them there are none."""
    base = {each.precision: each for each in figures if each.model == BASELINE}
    return [
        replace(
            each,
            tokens_per_s_ratio=each.tokens_per_s / base[each.precision].tokens_per_s,
            fastest_ratio=base[each.precision].step_ms_min / each.step_ms_min,
            flops_per_s_ratio=each.flops_per_s / base[each.precision].flops_per_s,
        )
        if each.precision in base
        else each
        for each in figures
    ]


def table(figures: Sequence[Figures], options: Options) -> Table:
    rows = "one document a row" if options.plain else "ours packed with documents"
    mode = "torch.compile" if options.compiled else "eager"
    title = f"{options.batch} x {options.length} tokens, {rows}, {mode}, median of {options.repeats}; ratios to {BASELINE}"
    shown = Table(title=title, title_justify="left")
    shown.add_column("model", no_wrap=True)
    shown.add_column("precision")
    for name in ("parameters", "tokens/s", "ratio", "fastest", "step ms", "min ms", "fwd+bwd ms", "optimizer ms"):
        shown.add_column(name, justify="right")
    for name in ("MFLOP/token", "GFLOP/s", "ratio", "peak MiB", "loss"):
        shown.add_column(name, justify="right")
    for each in figures:
        shown.add_row(
            each.model,
            each.precision,
            f"{each.parameters:,}",
            f"{each.tokens_per_s:,.0f}",
            _ratio(each.tokens_per_s_ratio),
            _ratio(each.fastest_ratio),
            f"{each.step_ms:,.0f}",
            f"{each.step_ms_min:,.0f}",
            f"{each.passes_ms:,.0f}",
            f"{each.optimizer_ms:,.0f}",
            f"{each.flops_per_token / 1e6:,.1f}",
            f"{each.flops_per_s / 1e9:,.1f}",
            _ratio(each.flops_per_s_ratio),
            f"{each.peak_bytes / 2**20:,.0f}",
            f"{each.loss_first:.2f} > {each.loss_last:.2f}" if each.losses_are_finite else "not finite",
        )
    return shown


def json_lines(figures: Sequence[Figures], options: Options, machine: Mapping[str, Any], code: str | None, date: datetime) -> list[str]:
    """One JSON object a model and precision, each complete in itself."""
    versions = {package: _version(package) for package in PACKAGES}
    common = {
        "date": date.isoformat(timespec="seconds"),
        "code": code,
        "machine": {**machine, "packages": versions},
        "options": asdict(options),
    }
    return [json.dumps({**common, **asdict(each)}, allow_nan=False) for each in figures]


class Cost(NamedTuple):
    """flops: of a step, forward and backward"""

    parameters: int
    flops: int


def _cost(build: Builder, options: Options, batch: Batch, precision: Precision) -> Cost:
    contestant = build(_setting(options))
    return Cost(sum(parameter.numel() for parameter in contestant.model.parameters()), count_flops(contestant, batch, precision))


def _figures(name: str, cost: Cost, laps: Sequence[Lap], peak_bytes: int, precision: Precision, options: Options) -> Figures:
    tokens = options.batch * options.length
    steps_s = [lap.passes_s + lap.optimizer_s for lap in laps]
    passes_s = median(lap.passes_s for lap in laps)
    return Figures(
        model=name,
        precision=precision,
        parameters=cost.parameters,
        tokens_per_s=tokens / median(steps_s),
        step_ms=1e3 * median(steps_s),
        step_ms_min=1e3 * min(steps_s),
        passes_ms=1e3 * passes_s,
        optimizer_ms=1e3 * median(lap.optimizer_s for lap in laps),
        flops_per_token=cost.flops / tokens,
        flops_per_s=cost.flops / passes_s,
        peak_bytes=peak_bytes,
        loss_first=_finite(laps[0].loss),
        loss_last=_finite(laps[-1].loss),
        losses_are_finite=all(math.isfinite(lap.loss) for lap in laps),
    )


def _setting(options: Options) -> Setting:
    return Setting(options.length, torch.device(options.device), options.compiled)


def _batch(options: Options, vocab_size: int) -> Batch:
    return random_batch(vocab_size, options.batch, options.length, packed=not options.plain, device=torch.device(options.device))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description="How fast Cognate trains beside its rivals.")
    parser.add_argument("--batch", type=_positive, default=Options.batch, help="rows in a batch (default %(default)s)")
    parser.add_argument("--length", type=_positive, default=Options.length, help="tokens in a row (default %(default)s)")
    parser.add_argument("--precision", choices=[*get_args(Precision), "both"], default="both")
    parser.add_argument("--repeats", type=_positive, default=Options.repeats, help="timed steps of each model (default %(default)s)")
    parser.add_argument("--threads", type=_positive, help="torch's CPU threads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile for all")
    parser.add_argument("--plain", action="store_true", help="ours too gets one document a row")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), metavar="NAME", help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line a model and precision")
    return parser


def _options(parsed: argparse.Namespace) -> Options:
    return Options(
        batch=parsed.batch,
        length=parsed.length,
        precisions=get_args(Precision) if parsed.precision == "both" else (parsed.precision,),
        repeats=parsed.repeats,
        threads=parsed.threads,
        device=parsed.device,
        compiled=parsed.compile,
        plain=parsed.plain,
        only=tuple(parsed.only or CONTESTANTS),
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _code() -> str | None:
    """The commit that is measured, with "-dirty" where files differ from it; None where git does not know."""
    try:
        return subprocess.check_output(["git", "describe", "--always", "--dirty"], cwd=ROOT, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
