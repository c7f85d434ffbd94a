"""Everything that only a GPU can show, in one command: `make bench-gpu`, or python -m benchmarks.gpu. About twenty minutes.

    suite       the model's and the optimizer's tests with their tensors on the GPU
    ceiling     what the card multiplies at most, bf16, 8192 x 8192
    optimizer   benchmarks/optimizer_step.py on the card
    rivals      benchmarks/train.py on the card, compiled
    steady      the full model on packed real data as the worker trains it: tokens/s, share of the ceiling, peak memory
    budget      the same within 6 GB
    ways        its step uncompiled, compiled with masked SDPA, with FlexAttention, and with each in CUDA graphs, in turns
    profile     which kernels bound it, and how long the card waits
    curriculum  ten epochs of the six-dataset plan through the worker: seconds of training

    make bench-gpu ARGS="--json gpu.jsonl --only ceiling steady profile"

Real data by COGNATE_DATA_DIR; without, generated problems, which the result says. With --device cpu --small it is a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.sidebyside import Batch, Contestant, count_flops, describe_machine
from cognate.config import SIX_DATASETS, RunConfig, resolve
from cognate.data.batches import Batch as Rows
from cognate.data.batches import TrainingBatches
from cognate.data.corpus import load_corpus
from cognate.events import Event, Kind
from cognate.model import Cognate
from cognate.rundir import RunDir, read_journal
from cognate.training.execution import activation_dtype, parts, prepare
from cognate.training.loop import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path("var/cache")
GIB = 2**30


@dataclass(frozen=True)
class Setting:
    device: torch.device
    data: Path | None
    is_small: bool

    def config(self, **training: Any) -> RunConfig:
        model = {"d_model": 64, "n_heads": 2, "n_layers": 2, "d_ff": 128, "trm_d_ff": 128, "vocab_size": 2048} if self.is_small else {}
        data = {"source": "real", "datasets": list(SIX_DATASETS)} if self.data else {"source": "synthetic"}
        size = {"batch_size": 2, "sequence_length": 64} if self.is_small else {}
        return resolve("reasoning", {"model": model, "data": data, "training": {**size, "compile": "on", **training}})


def suite(setting: Setting) -> dict[str, Any]:
    """The tests' tolerances are those of float32; TF32 is off, as the worker leaves it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/model", "tests/optimizer", "tests/training"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COGNATE_TEST_DEVICE": setting.device.type}, capture_output=True, text=True, check=False
    )
    return {"exit_code": done.returncode, "last_lines": done.stdout.splitlines()[-25:]}


def ceiling(setting: Setting) -> dict[str, Any]:
    size = 256 if setting.is_small else 8192
    a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = timed(lambda: torch.mm(a, b), setting.device, warmups=3, repeats=20)
    return {"bf16_matmul_tflops": 2 * size**3 / seconds / 1e12}


def steady(setting: Setting, *, limit_gb: float | None = None) -> dict[str, Any]:
    """Several batch sizes, since a small batch may leave the card waiting for its orders."""
    sizes = [2] if setting.is_small else [16] if limit_gb else [16, 64, 128]
    return {str(size): train_steadily(setting, size, limit_gb) for size in sizes}


def train_steadily(setting: Setting, batch_size: int, limit_gb: float | None) -> dict[str, Any]:
    config = setting.config(batch_size=batch_size, gpu_memory_gb=limit_gb)
    warmups, repeats = (1, 2) if setting.is_small else (10, 50)
    session = Session(setting, config)
    seconds = timed(session.step, setting.device, warmups, repeats)
    tokens = batch_size * config.training.sequence_length
    result = {
        **session.execution.describe(),
        "data": config.data.source,
        "tokens_per_s": tokens / seconds,
        "step_ms": 1e3 * seconds,
        "flops_per_token": session.flops_per_token,
    }
    result["tflops"] = result["tokens_per_s"] * result["flops_per_token"] / 1e12
    if setting.device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(setting.device) / GIB
    return {**result, "said": session.said}


def ways(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a step, the median over rounds of several steps, in turns; what a way fails with stands in its place.

    CUDA graphs (mode="reduce-overhead") are not what the worker uses: they pay only where the card waits for launches, and hold
    on to the memory of everything in them.
    """
    repeats, rounds = (1, 1) if setting.is_small else (10, 7)
    compiled: dict[str, dict[str, Any]] = {
        "sdpa": {"flex": False},
        "flex": {"flex": True},
        "sdpa, graphs": {"flex": False, "mode": "reduce-overhead"},
        "flex, graphs": {"flex": True, "mode": "reduce-overhead"},
    }
    found: dict[str, Any] = {}
    for size in [2] if setting.is_small else [16, 64]:
        config = setting.config(batch_size=size, micro_batch_size=size, compile="off")
        sessions, times = {name: Session(setting, config) for name in ("uncompiled", *compiled)}, {}
        for name, options in compiled.items():
            sessions[name].compile(**options)
        result: dict[str, Any] = {}
        for number in range(rounds + 1):
            for name, session in sessions.items():
                try:
                    seconds = timed(session.step, setting.device, 0 if number else 3, repeats)
                except Exception as error:
                    result[name] = f"{type(error).__name__}: {str(error)[:300]}"
                    continue
                times.setdefault(name, []).append(1e3 * seconds)
        found[str(size)] = result | {name: statistics.median(each[1:]) for name, each in times.items() if name not in result}
    return found


def profiled(setting: Setting) -> dict[str, Any]:
    session = Session(setting, setting.config(batch_size=2 if setting.is_small else 64))
    timed(session.step, setting.device, warmups=5, repeats=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device.type == "cuda" else [])]
    began = time.perf_counter()
    with profile(activities=activities) as record:
        for _ in range(3):
            session.step()
        wait(setting.device)
    wall = time.perf_counter() - began
    rows = [
        (row.key, row.self_device_time_total if setting.device.type == "cuda" else row.self_cpu_time_total, row.count)
        for row in record.key_averages()
    ]
    rows.sort(key=lambda row: -row[1])
    busy = sum(row[1] for row in rows) / 1e6
    return {
        "busy_share": busy / wall if setting.device.type == "cuda" else None,
        "top": [{"name": name[:90], "ms": micros / 3e3, "calls": calls / 3} for name, micros, calls in rows[:20]],
    }


def curriculum(setting: Setting) -> dict[str, Any]:
    """As a person would run it, through the worker; seconds of training are those of the run's own clock."""
    config = setting.config(max_steps=3 if setting.is_small else None)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / "run")
        run.create(config)
        attempt = run.attempt(1)
        attempt.create()
        began = time.perf_counter()
        environment = {**os.environ, "COGNATE_DEVICE": str(setting.device), "COGNATE_CACHE_DIR": str(CACHE.absolute())}
        subprocess.run([sys.executable, "-m", "cognate.worker", str(attempt.path)], cwd=ROOT, env=environment, check=False)
        wall = time.perf_counter() - began
        told = [
            event for event, _ in read_journal(attempt.journal, limit=1 << 30) if isinstance(event, Event) and event.kind is Kind.METRICS
        ]
    last, values = told[-1].data, [event.data["values"] for event in told]
    val_losses = [row["val_loss"] for row in values if "val_loss" in row]
    hours = last["values"].get("training_time_hours")
    return {"wall_s": wall, "training_s": hours and 3600 * hours, "steps": last["step"], "val_losses": val_losses}


class Session:
    """Training as the worker does it, without its files."""

    def __init__(self, setting: Setting, config: RunConfig) -> None:
        self._config, self._device = config, setting.device
        self.said: list[str] = []
        corpus = load_corpus(config, setting.data, CACHE)
        self._batches = TrainingBatches(corpus, config.training, config.seed)
        torch.manual_seed(config.seed)
        self._model = Cognate(config.model).to(setting.device)
        self._model.compute_dtype = activation_dtype(config, setting.device)
        self._model.train()
        self._optimizer = build_optimizer(self._model, config)
        self.flops_per_token = self._flops_per_token()  # before it is compiled, which hides them
        self.execution = prepare(self._model, lambda: self._batches.batch(1, 0), config.training, self._device, 10**6, {}, self.said.append)
        self._rows = self._each()

    def step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for part, share in parts(next(self._rows), self.execution.rows_at_once, self._device):
            torch.autograd.backward(self._model.loss(part.tokens, part.targets, part.documents).loss * share)
        self._optimizer.step()

    def compile(self, **options: Any) -> None:
        self._model.compile(**options)

    def _flops_per_token(self) -> float:
        part, _ = next(iter(parts(self._batches.batch(1, 0), 1, self._device)))
        contestant = Contestant(
            "ours", self._model, self._optimizer, lambda batch, _: self._model.loss(batch.tokens, batch.targets, batch.documents).loss
        )
        return count_flops(contestant, Batch(part.tokens, part.targets, part.documents), "bf16") / part.tokens.numel()

    def _each(self) -> Iterator[Rows]:
        while True:
            for epoch in range(1, self._config.training.epochs + 1):
                yield from (self._batches.batch(epoch, index) for index in range(self._batches.steps_in_epoch(epoch)))


def timed(work: Callable[[], object], device: torch.device, warmups: int, repeats: int) -> float:
    """Seconds a call, one after another as in training: waited for at the end only."""
    for _ in range(warmups):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(device)
    return (time.perf_counter() - began) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def other(module: str, *arguments: str) -> Callable[[Setting], dict[str, Any]]:
    """Another benchmark, in a process of its own; its table is shown, its figures are kept."""

    def run(setting: Setting) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            command = [sys.executable, "-m", module, "--device", str(setting.device), "--json", file.name, *arguments]
            command += ["--repeats", "1"] if setting.is_small else []
            done = subprocess.run(command, cwd=ROOT, check=False)
            lines = file.read().splitlines()
        return {"exit_code": done.returncode, "figures": [json.loads(line) for line in islice(lines, 20) if line.startswith("{")]}

    return run


PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "suite": suite,
    "ceiling": ceiling,
    "optimizer": other("benchmarks.optimizer_step"),
    "rivals": other("benchmarks.train", "--compile", "--batch", "32", "--precision", "bf16"),
    "steady": steady,
    "budget": lambda setting: steady(setting, limit_gb=6.0),
    "ways": ways,
    "profile": profiled,
    "curriculum": curriculum,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Everything that only a GPU can show.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a rehearsal: tiny sizes, few repeats")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line a part, as each is done")
    options = parser.parse_args()
    data = os.environ.get("COGNATE_DATA_DIR")
    setting = Setting(torch.device(options.device), Path(data) if data else None, options.small)
    machine = describe_machine(setting.device)
    for name in options.only or PARTS:
        began = time.perf_counter()
        try:
            found: dict[str, Any] = PARTS[name](setting)
        except Exception as error:  # the other parts are worth having
            found = {"error": f"{type(error).__name__}: {error}"}
        line = {
            "part": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "took_s": round(time.perf_counter() - began, 1),
        }
        print(json.dumps({"part": name, **found}, indent=1), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps({**line, **found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
