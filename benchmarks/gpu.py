"""Everything that only a GPU can show, in one command: `make bench-gpu`, or python -m benchmarks.gpu. 44 minutes at the most.

    ceiling     what the card multiplies at most, bf16, 8192 x 8192
    steady      the full model on packed real data, steps that are not logged: tokens/s, share of the ceiling, peak memory
    optimizer   benchmarks/optimizer_step.py on the card
    decode      benchmarks/decode.py on the card
    curriculum  ten epochs of the six-dataset plan through the worker: seconds of training
    profile     which kernels bound it, and how long the card waits
    budget      steady as on a card of 6 GB: torch may take 5.4, the rest is the context's; in bf16, and as older cards do in fp32
    suite       all tests that are marked gpu, and the model's and the optimizer's with their tensors on the GPU
    ways        its step uncompiled, compiled with masked SDPA, with FlexAttention, and with each in CUDA graphs, in turns
    rivals      benchmarks/train.py on the card, compiled

    make bench-gpu ARGS="--json gpu.jsonl --seconds 560 --only ceiling steady profile"

What is worth most comes first. Each part is a process of its own with a limit of time, so that none takes a failure, a compiler's
count of graphs or memory from another; what it had found when its time was up is kept.
Real data by COGNATE_DATA_DIR; without, generated problems, which the result says. With --device cpu --small it is a rehearsal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from benchmarks.session import CACHE, Session, Setting, matmul_tflops, timed, train_steadily, wait
from benchmarks.sidebyside import describe_machine
from cognate.events import Event, Kind
from cognate.rundir import AttemptDir, RunDir, read_journal

ROOT = Path(__file__).resolve().parents[1]
Found = Iterator[tuple[str, Any]]


def ceiling(setting: Setting) -> Found:
    yield "bf16_matmul_tflops", matmul_tflops(setting)


def steady(setting: Setting) -> Found:
    """Several batch sizes, since a small batch may leave the card waiting for its orders."""
    most = matmul_tflops(setting)
    for size in [2] if setting.is_small else [64, 16]:
        found = train_steadily(setting, setting.config(batch_size=size))
        yield str(size), {**found, "share_of_ceiling": found["tflops"] / most}


def budget(setting: Setting) -> Found:
    for precision in ("bf16", "fp32"):
        yield precision, train_steadily(setting, setting.config(gpu_memory_gb=5.4, precision=precision))


def suite(setting: Setting) -> Found:
    """The tests' tolerances are those of float32; TF32 is off, as the worker leaves it.

    Those of tests/training that are not marked gpu are left out: they train on the CPU, which they name.
    """
    processes = ["--numprocesses", str(min(8, len(os.sched_getaffinity(0)))), "--dist", "loadfile"]
    yield "marked_gpu", tested({}, "-m", "gpu", "tests/model", "tests/optimizer", "tests/training")
    yield (
        "on_the_device",
        tested({"COGNATE_TEST_DEVICE": setting.device.type}, "-m", "not gpu and not faults", "tests/model", "tests/optimizer", *processes),
    )


def tested(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """How pytest ended, its summary, and each test that failed, with the error. What it says is shown as it comes."""
    # Also where a plugin is missing whose settings stand in pyproject.toml.
    lenient = ["-o", "addopts=", "-W", "ignore::pytest.PytestConfigWarning"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *lenient, *arguments]
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
    """Kernels alone are recorded, and a step's own time is taken before: what is recorded of the host slows it."""
    is_cuda = setting.device.type == "cuda"
    for size in [2] if setting.is_small else [16, 64]:
        session = Session(setting, setting.config(batch_size=size))
        step_s = timed(session.step, setting.device, warmups=5, repeats=20)
        with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as record:
            for _ in range(3):
                session.step()
            wait(setting.device)
        rows = busiest(record.key_averages(), setting.device)
        yield (
            str(size),
            {
                "compiled": session.execution.compiled,
                "step_ms": 1e3 * step_s,
                "busy_share": sum(micros for _, micros, _ in rows) / 3e6 / step_s if is_cuda else None,
                "launches": sum(calls for _, _, calls in rows) / 3,
                "top": [{"name": name[:90], "ms": micros / 3e3, "calls": calls / 3} for name, micros, calls in rows[:20]],
            },
        )


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
        with subprocess.Popen([sys.executable, "-m", "cognate.worker", str(attempt.path)], cwd=ROOT, env=environment) as worker:
            while worker.poll() is None:
                time.sleep(1)
                yield from (("so far", found) for found in [course(attempt)] if found)  # kept if the time is up
        yield "so far", None
        yield "ended", {"wall_s": time.perf_counter() - began, **course(attempt)}


def course(attempt: AttemptDir) -> dict[str, Any]:
    """What the journal tells; empty before the first row."""
    told = [event for event, _ in read_journal(attempt.journal, limit=1 << 30) if isinstance(event, Event)]
    rows = [event.data for event in told if event.kind is Kind.METRICS]
    if not rows:
        return {}
    phases = [(event.at, event.data["phase"]) for event in told if event.kind is Kind.PHASE]
    spent: dict[str, float] = defaultdict(float)  # wall clock: "training" has the rows' measuring in it
    for (at, phase), (until, _) in itertools.pairwise([*phases, (told[-1].at, "")]):
        spent[phase] += until - at
    hours = rows[-1]["values"].get("training_time_hours")
    return {
        "last": {"kind": told[-1].kind, **told[-1].data},
        "compiled": [event.data["compiled"] for event in told if event.kind is Kind.PLAN],
        "said": [event.data["message"] for event in told if event.kind is Kind.WARNING],
        "steps": rows[-1]["step"],
        "val_losses": [row["values"]["val_loss"] for row in rows if "val_loss" in row["values"]],
        "phases_s": spent,
        "training_s": hours and 3600 * hours,
    }


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
    "decode": Part(other("benchmarks.decode"), 60),
    "curriculum": Part(curriculum, 300),
    "profile": Part(profiled, 240),
    "budget": Part(budget, 300),
    "suite": Part(suite, 480),
    "ways": Part(ways, 420),
    "rivals": Part(other("benchmarks.train", "--compile", "--batch", "32", "--precision", "bf16"), 300),
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
