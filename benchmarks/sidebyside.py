"""Measuring models side by side: in turns, so that whatever else the machine does slows all of them alike.

Each is in a process of its own, as its users have it, and waits there until it is its turn. In one process they would share malloc's
heap, and what one takes for its memory would follow from the holes the others leave: by that alone a step of x-transformers took from
1.0 to 1.8 s (docs/performance.md).

A time from here means little on its own; the ratio of two from one call to `race` holds. FLOPs are counted, not estimated.
Imports torch, and none of the models: rivals.py builds the contestants, train.py asks the questions.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Precision = Literal["fp32", "bf16"]
Shape = Sequence[int]
DOCUMENT_TOKENS = 130  # the mean over the six-dataset plan, roughly


@dataclass(frozen=True)
class Batch:
    """tokens, targets, documents: int64 [batch, time]; documents is None where every row is one document."""

    tokens: Tensor
    targets: Tensor
    documents: Tensor | None


@dataclass(frozen=True)
class Contestant:
    """A model as its users would train it. `loss` gives a scalar with its graph; `begin` is called in its process before the first step.

    rows_at_once: of a batch, forward and backward; None: all
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Batch, Precision], Tensor]
    begin: Callable[[Precision], object] = lambda _: None
    rows_at_once: int | None = None


@dataclass(frozen=True)
class Lap:
    """One step: seconds of forward and backward, seconds of the optimizer, and the loss."""

    passes_s: float
    optimizer_s: float
    loss: float


class Seat:
    """A process with one contestant, which steps when it is told to. Where the process dies, whoever asks it gets a SeatLost.

    contestant: makes it there; to be pickled, as the rest
    """

    def __init__(self, name: str, contestant: Callable[[], Contestant], batch: Callable[[], Batch], precision: Precision) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, contestant, batch, precision), daemon=True)
        self._process.start()
        there.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self._process.join()

    def lap(self) -> Lap:
        """A step right after another, as in training: memory that lay idle while others had their turn comes slowly from a virtual
        machine's host."""
        self._ask("step")
        lap = self._ask("step")
        assert isinstance(lap, Lap)
        return lap

    def peak(self) -> int:
        """Bytes at the highest point so far: of the process on a CPU, of torch's tensors on CUDA."""
        return int(self._ask("peak"))

    def _ask(self, question: str) -> Any:
        try:
            self._here.send(question)
            return self._here.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise SeatLost(f"the process of {self._name} ended with exit code {self._process.exitcode}") from error


class SeatLost(RuntimeError):
    """A process has ended; by a signal, most likely there was no memory left."""


def _serve(asked: Connection, contestant: Callable[[], Contestant], batch: Callable[[], Batch], precision: Precision) -> None:
    own, given = contestant(), batch()
    own.begin(precision)
    answers: dict[str, Callable[[], object]] = {
        "step": partial(step, own, given, precision),
        "peak": partial(peak_memory, given.tokens.device),
    }
    try:
        while True:
            asked.send(answers[asked.recv()]())
    except (EOFError, KeyboardInterrupt):  # nobody asks any more
        return


def race(steps: Sequence[Callable[[], Lap]], *, warmups: int, repeats: int, say: Callable[[str], None]) -> list[list[Lap]]:
    """`repeats` laps of each, in the order A B C A B C ..., after `warmups` such rounds that are not kept."""
    laps: list[list[Lap]] = [[] for _ in steps]
    for number in range(warmups + repeats):
        say(f"warm-up {number + 1} of {warmups}" if number < warmups else f"round {number - warmups + 1} of {repeats}")
        for kept, each in zip(laps, steps, strict=True):
            lap = each()
            if number >= warmups:
                kept.append(lap)
    return laps


def step(contestant: Contestant, batch: Batch, precision: Precision) -> Lap:
    """One timed step: forward, backward, optimizer."""
    device = batch.tokens.device
    _wait(device)
    began = time.perf_counter()
    total = torch.zeros((), device=device)
    for part in _parts(batch, contestant.rows_at_once):
        loss = contestant.loss(part, precision) * (len(part.tokens) / len(batch.tokens))
        torch.autograd.backward(loss)
        total += loss.detach()
    _wait(device)
    passed = time.perf_counter()
    contestant.optimizer.step()
    contestant.optimizer.zero_grad(set_to_none=True)
    _wait(device)
    return Lap(passed - began, time.perf_counter() - passed, float(total))


def _parts(batch: Batch, rows: int | None) -> Iterator[Batch]:
    rows = rows or len(batch.tokens)
    for start in range(0, len(batch.tokens), rows):
        documents = None if batch.documents is None else batch.documents[start : start + rows]
        yield Batch(batch.tokens[start : start + rows], batch.targets[start : start + rows], documents)


def count_flops(contestant: Contestant, batch: Batch, precision: Precision) -> int:
    """FLOPs of one forward and backward: what matrix products really cost, a multiplication and an addition being two."""
    return sum(flops_by_kind(contestant, batch, precision))


def flops_by_kind(contestant: Contestant, batch: Batch, precision: Precision) -> tuple[int, int]:
    """Those of attention, and the others.

    Attention is counted by the shapes a kernel is called with. A causal kernel called on whole rows counts every query with every
    key, though it skips up to half of them; so does ours on the CPU in one call for all pairs, masked; in strips it counts
    their blocks. Where attention is made by products, they are among the others.
    """
    # Compiled code hides its products from the counter.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        torch.autograd.backward(contestant.loss(batch, precision))
    contestant.optimizer.zero_grad(set_to_none=True)
    by_operation = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(flops for operation, flops in by_operation.items() if "attention" in operation)
    return attention, sum(by_operation.values()) - attention


def peak_memory(device: torch.device) -> int:
    """Bytes at this process' highest point: all of it on a CPU, torch's tensors on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage's: that one remembers what the parent held when it started this process.
    return _kib(Path("/proc/self/status").read_text(), "VmHWM") * 1024


def random_batch(vocab_size: int, batch: int, length: int, *, packed: bool, device: torch.device, seed: int = 0) -> Batch:
    """Random tokens, every target counted; packed: rows of several documents cut at random, DOCUMENT_TOKENS long on average."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(vocab_size, (batch, length + 1), generator=generator).to(device)
    documents = None
    if packed:
        cuts = max(1, round(length / DOCUMENT_TOKENS)) - 1
        starts = torch.zeros(batch, length, dtype=torch.int64)
        for row in starts:
            row[1 + torch.randperm(length - 1, generator=generator)[:cuts]] = 1
        documents = starts.cumsum(1).to(device)
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), documents)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What a figure was measured on."""
    described: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
    return described


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forward_flops(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _backward_flops(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


# The counter knows CUDA's attention kernels; the CPU's is counted by the same formulas.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
}


def _kib(status: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, f"the kernel tells every process its {name}"
    return int(found[1])


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()
