"""Everything that only a GPU can show, in one command: `make bench-gpu`, or python -m benchmarks.gpu. 37 minutes at the most.

    ceiling     what the card multiplies at most, bf16, 8192 x 8192
    steady      the full model on packed real data as the worker trains it: tokens/s, share of the ceiling, peak memory
    optimizer   benchmarks/optimizer_step.py on the card
    suite       the model's and the optimizer's tests with their tensors on the GPU, and all that are marked gpu
    curriculum  ten epochs of the six-dataset plan through the worker: seconds of training
    profile     which kernels bound it, and how long the card waits
    budget      steady within 6 GB
    ways        its step uncompiled, compiled with masked SDPA, with FlexAttention, and with each in CUDA graphs, in turns
    rivals      benchmarks/train.py on the card, compiled

    make bench-gpu ARGS="--json gpu.jsonl --seconds 560 --only ceiling steady profile"

What is worth most comes first. Each part is a process of its own with a limit of time, so that none takes a failure, a compiler's
count of graphs or memory from another; what it had found when its time was up is kept.
Real data by COGNATE_DATA_DIR; without, generated problems, which the result says. With --device cpu --small it is a rehearsal.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.sidebyside import Batch, Contestant, count_flops, describe_machine
from cognate.config import SIX_DATASETS, RunConfig, resolve
from cognate.data.batches import Batch as Rows
from cognate.data.batches import TrainingBatches
from cognate.data.corpus import load_corpus
from cognate.events import Event, Kind
from cognate.model import Cognate
from cognate.rundir import RunDir, read_journal
from cognate.training.execution import activation_dtype, parts, prepare, strictly, ways_to_compile
from cognate.training.loop import build_optimizer
from cognate.worker import make_deterministic

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path("var/cache")
GIB = 2**30
Found = Iterator[tuple[str, Any]]


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


def ceiling(setting: Setting) -> Found:
    yield "bf16_matmul_tflops", matmul_tflops(setting)


def matmul_tflops(setting: Setting) -> float:
    size = 256 if setting.is_small else 8192
    a, b = (torch.randn(size, size, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: torch.mm(a, b), setting.device, warmups=3, repeats=20) / 1e12


def steady(setting: Setting, *, limit_gb: float | None = None) -> Found:
    """Several batch sizes, since a small batch may leave the card waiting for its orders."""
    most = matmul_tflops(setting)
    for size in [2] if setting.is_small else [16] if limit_gb else [16, 64, 128]:
        found = train_steadily(setting, size, limit_gb)
        yield str(size), {**found, "share_of_ceiling": found["tflops"] / most}


def train_steadily(setting: Setting, batch_size: int, limit_gb: float | None) -> dict[str, Any]:
    config = setting.config(batch_size=batch_size, gpu_memory_gb=limit_gb)
    warmups, repeats = (1, 2) if setting.is_small else (10, 50)
    session = Session(setting, config)
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setting.device)
    seconds = timed(session.step, setting.device, warmups, repeats)
    tokens = batch_size * config.training.sequence_length
    result = {
        **session.execution.describe(),
        "compiled_as_asked": session.execution.compiled == ways_to_compile(setting.device, session.dtype)[0],
        "data": config.data.source,
        "tokens_per_s": tokens / seconds,
        "step_ms": 1e3 * seconds,
        "flops_per_token": session.flops_per_token,
    }
    result["tflops"] = result["tokens_per_s"] * result["flops_per_token"] / 1e12
    if setting.device.type == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated(setting.device) / GIB
    return {**result, "said": session.said}


def suite(setting: Setting) -> Found:
    """The tests' tolerances are those of float32; TF32 is off, as the worker leaves it.

    Those of tests/training that are not marked gpu are left out: they train on the CPU, which they name.
    """
    processes = ["--numprocesses", str(min(8, len(os.sched_getaffinity(0)))), "--dist", "loadfile"]
    yield (
        "on_the_device",
        tested({"COGNATE_TEST_DEVICE": setting.device.type}, "-m", "not gpu and not faults", "tests/model", "tests/optimizer", *processes),
    )
    yield "marked_gpu", tested({}, "-m", "gpu", "tests/model", "tests/optimizer", "tests/training")


def tested(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """How pytest ended, its summary, and each test that failed, with the error. What it says is shown as it comes."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *arguments]
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": running.returncode, "summary": lines[-1:], "failed": failed}


def ways(setting: Setting) -> Found:
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
    for size in [2] if setting.is_small else [16, 64]:
        config = setting.config(batch_size=size, micro_batch_size=size, compile="off")
        sessions = {name: Session(setting, config) for name in ("uncompiled", *compiled)}
        for name, options in compiled.items():
            sessions[name].compile(**options)
        times: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        for number in range(rounds):
            for name in [name for name in sessions if name not in failed]:
                try:
                    seconds = timed(sessions[name].step, setting.device, 0 if number else 3, repeats)
                except Exception as error:
                    failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
                else:
                    times.setdefault(name, []).append(1e3 * seconds)
                yield str(size), {name: statistics.median(each) for name, each in times.items()} | failed


def profiled(setting: Setting) -> Found:
    session = Session(setting, setting.config(batch_size=2 if setting.is_small else 64))
    yield "compiled", session.execution.compiled
    timed(session.step, setting.device, warmups=5, repeats=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device.type == "cuda" else [])]
    began = time.perf_counter()
    with profile(activities=activities) as record:
        for _ in range(3):
            session.step()
        wait(setting.device)
    wall = time.perf_counter() - began
    rows = busiest(record.key_averages(), setting.device)
    yield "busy_share", sum(micros for _, micros, _ in rows) / 1e6 / wall if setting.device.type == "cuda" else None
    yield "top", [{"name": name[:90], "ms": micros / 3e3, "calls": calls / 3} for name, micros, calls in rows[:20]]


def busiest(rows: Iterable[FunctionEventAvg], device: torch.device) -> list[tuple[str, float, int]]:
    """Name, microseconds and calls of what kept the device busy, the longest first.

    On a GPU those are its kernels: the rows of the host repeat the time of the kernels that they launched.
    """
    if device.type == "cuda":
        kernels = [row for row in rows if row.device_type == DeviceType.CUDA and not row.is_user_annotation]
        found = [(row.key, row.self_device_time_total, row.count) for row in kernels]
    else:
        found = [(row.key, row.self_cpu_time_total, row.count) for row in rows]
    return sorted(found, key=lambda row: -row[1])


def curriculum(setting: Setting) -> Found:
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
        yield "wall_s", time.perf_counter() - began
        told = [event for event, _ in read_journal(attempt.journal, limit=1 << 30) if isinstance(event, Event)]
    yield "ended", {"kind": told[-1].kind, **told[-1].data}
    yield "compiled", [event.data["compiled"] for event in told if event.kind is Kind.PLAN]
    yield "said", [event.data["message"] for event in told if event.kind is Kind.WARNING]
    rows = [event.data for event in told if event.kind is Kind.METRICS]
    yield "steps", rows[-1]["step"]
    yield "val_losses", [row["values"]["val_loss"] for row in rows if "val_loss" in row["values"]]
    hours = rows[-1]["values"].get("training_time_hours")
    yield "training_s", hours and 3600 * hours


class Session:
    """Training as the worker does it, without its files."""

    def __init__(self, setting: Setting, config: RunConfig) -> None:
        make_deterministic(setting.device)
        gc.collect()  # of a session before this one, whose memory would count as taken
        self._config, self._device = config, setting.device
        self.said: list[str] = []
        corpus = load_corpus(config, setting.data, CACHE)
        self._batches = TrainingBatches(corpus, config.training, config.seed)
        torch.manual_seed(config.seed)
        self._model = Cognate(config.model).to(setting.device)
        self._model.compute_dtype = self.dtype = activation_dtype(config, setting.device)
        self._model.train()
        self._optimizer = build_optimizer(self._model, config)
        self.flops_per_token = self._flops_per_token()  # before it is compiled, which hides them
        self.execution = prepare(self._model, lambda: self._batches.batch(1, 0), config.training, self._device, 10**6, {}, self.said.append)
        self._rows = self._each()

    def step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        for part, share in parts(next(self._rows), self.execution.rows_at_once, self._device):
            with strictly(self.execution.is_strict):
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


def other(module: str, *arguments: str) -> Callable[[Setting], Found]:
    """Another benchmark, in a process of its own; its table is shown, its figures are kept."""

    def run(setting: Setting) -> Found:
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            command = [sys.executable, "-m", module, "--device", str(setting.device), "--json", file.name, *arguments]
            command += ["--repeats", "1"] if setting.is_small else []
            yield "exit_code", subprocess.run(command, cwd=ROOT, check=False).returncode
            yield "figures", values_in(file.read())

    return run


def values_in(text: str) -> list[Any]:
    """The JSON values of a text, one after another, on one line each or on many."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


@dataclass(frozen=True)
class Part:
    """find: yields each thing found as soon as it is, the same name again for what replaces it"""

    find: Callable[[Setting], Found]
    limit_s: float


PARTS: dict[str, Part] = {
    "ceiling": Part(ceiling, 60),
    "steady": Part(steady, 360),
    "optimizer": Part(other("benchmarks.optimizer_step"), 120),
    "suite": Part(suite, 180),
    "curriculum": Part(curriculum, 300),
    "profile": Part(profiled, 240),
    "budget": Part(lambda setting: steady(setting, limit_gb=6.0), 240),
    "ways": Part(ways, 420),
    "rivals": Part(other("benchmarks.train", "--compile", "--no-peak", "--batch", "32", "--precision", "bf16"), 300),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Everything that only a GPU can show.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a rehearsal: tiny sizes, few repeats")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all parts together; what then is under way is ended")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a JSON line a part, as each is done")
    parser.add_argument("--part-into", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = os.environ.get("COGNATE_DATA_DIR")
    setting = Setting(torch.device(options.device), Path(data) if data else None, options.small)
    if options.part_into:
        find_here(options.part_into[0], setting, Path(options.part_into[1]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else a part would outlive us
    machine, end = describe_machine(setting.device), time.monotonic() + options.seconds
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((CACHE / "compiled").absolute()))  # as the worker's, for all parts
    for name in options.only or PARTS:
        began = time.monotonic()
        found = find_apart(name, setting, min(PARTS[name].limit_s, end - began))
        line = {
            "part": name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "took_s": round(time.monotonic() - began, 1),
        }
        print(json.dumps({"part": name, **found}, indent=1), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps({**line, **found}) + "\n")
    return 0


def find_apart(name: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    """What a part finds in a process of its own; with an `error` where it was not done."""
    if limit_s <= 0:
        return {"error": "no time was left"}
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as file:
        command = [sys.executable, "-m", "benchmarks.gpu", "--device", str(setting.device), "--part-into", name, file.name]
        child = subprocess.Popen([*command, *["--small"] * setting.is_small], cwd=ROOT, start_new_session=True)
        error = None
        try:
            if child.wait(limit_s):
                error = f"ended with code {child.returncode}"
        except subprocess.TimeoutExpired:
            error = f"ended after {limit_s:.0f} s"
        finally:
            end_all_of(child)
        found: dict[str, Any] = {}
        for line in file:
            found |= json.loads(line) if line.endswith("\n") else {}
    return {"error": error, **found} if error else found


def end_all_of(child: subprocess.Popen[bytes]) -> None:
    """The part, and what it started: compilers, a worker, pytest."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def find_here(name: str, setting: Setting, file: Path) -> None:
    torch._dynamo.config.recompile_limit = 64  # graphs of the loss, which all batch sizes and ways share: more than a run ever has
    with file.open("w") as out:
        try:
            for key, value in PARTS[name].find(setting):
                print(json.dumps({key: value}), file=out, flush=True)
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:1000]}"}), file=out)


if __name__ == "__main__":
    sys.exit(main())
