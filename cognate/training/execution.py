"""How steps are carried out on the device at hand: how wide, compiled or not, and how many rows of a batch at a time.

None of it changes what is computed but for rounding, and, of a batch in parts, which tokens early recursions are scored on (decision
10). A resumed run goes on as it began wherever it can (`resumed_from`), since a bit-identical resume needs the same roundings.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch._functorch.config
from torch import Tensor

from cognate.config import RunConfig, TrainingConfig
from cognate.data.batches import IGNORED, Batch
from cognate.model import Cognate, Loss
from cognate.model.sight import has_flex
from cognate.precision import native_dtype
from cognate.transfer import to_device

Compiled = Literal["nothing", "regions", "whole", "flex"]
NAMES: Mapping[Compiled, str] = {  # for what fails
    "regions": "torch.compile",
    "whole": "one graph of the whole loss",
    "flex": "FlexAttention",
}
WORTH_COMPILING = 1000  # steps: compiling takes half a minute to minutes, and saves a fifth of every step
CPU_TOKENS = 2**12  # at once: 16 rows of 512 took 1.01 to 1.07 times as long as two times 8 (docs/performance.md), and more memory
GIB = 2**30


@dataclass(frozen=True)
class Execution:
    """rows_at_once: of a batch, forward and backward

    compiled: nothing; regions, what lies between attentions; whole, the loss; flex, the loss with FlexAttention
    is_strict: a step's passes run strictly()
    """

    rows_at_once: int
    compiled: Compiled = "nothing"
    is_strict: bool = False

    def describe(self) -> dict[str, Any]:
        return {"rows_at_once": self.rows_at_once, "compiled": self.compiled}


def activation_dtype(config: RunConfig, device: torch.device) -> torch.dtype:
    """bf16 where asked for, or where the device multiplies it natively; else fp32.

    Measured, the default model at 4 x 512 on two cores with AMX: 1.4 s a step's passes in bf16, 2.6 s in fp32.
    """
    if config.training.precision == "auto":
        return native_dtype(device)
    return torch.bfloat16 if config.training.precision == "bf16" else torch.float32


def prepare(
    model: Cognate,
    sample: Callable[[], Batch],
    training: TrainingConfig,
    device: torch.device,
    total_steps: int,
    resumed_from: Mapping[str, Any],
    say: Callable[[str], None],
    rows_at_most: int | None = None,
    beside: Callable[[], object] = lambda: None,
    *,
    measures: bool = True,
) -> Execution:
    """Decide on an Execution and make the model ready for it; what a person should know of it is said.

    sample: makes a training batch; resumed_from: the describe() of the run so far, or empty, with None for what is to be
    decided anew; rows_at_most: at once, whatever fits; beside: makes passes like a step's that are not of its batch; measures:
    whether some steps will be measured, which is another graph to compile
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # which a loss in train mode updates
    if training.gpu_memory_gb is not None and device.type == "cuda":
        keep_within(int(training.gpu_memory_gb * GIB), device)
    rows = rows_at_once(model, sample, training, device, resumed_from.get("rows_at_once"), rows_at_most)
    is_strict = warns_only() and can_be_strict(model, _rows_of(sample(), 0, 1), device, say, beside, measures=measures)
    compiled: Compiled = "nothing"
    wants = training.compile == "on" or (training.compile == "auto" and total_steps >= WORTH_COMPILING and has_compiler(device))
    before = resumed_from.get("compiled", "nothing") if resumed_from else None
    for way in ways_to_compile(device, model.compute_dtype, before) if wants or before else ():
        compile_as(model, way)
        try:
            with strictly(is_strict):
                rows = rows_that_fit(model, sample(), rows, training, device, measures=measures)
        except Exception as error:  # a compiler may fail in any way; the run need not
            model.compile_nothing()
            say(f"goes on without {NAMES[way]}, which failed: {type(error).__name__}: {str(error)[:500]}")
        else:
            compiled = way
            break
    if rows < _enough(training, device):
        say(f"a batch goes through the model in {training.batch_size // rows} parts of {rows} rows, for want of memory for all at once")
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)
    return Execution(rows, compiled, is_strict)


def warns_only() -> bool:
    """Whether torch is deterministic where it can be, and warns elsewhere."""
    return torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()


@contextmanager
def strictly(is_strict: bool) -> Iterator[None]:
    """What has no deterministic form fails; only so does CUDA's memory-efficient attention take its deterministic gradient.

    For a step's passes alone: what an epoch's end calls need not be repeated to the bit, and may not fail.
    """
    if is_strict:
        torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        if is_strict:
            torch.set_deterministic_debug_mode("warn")


def can_be_strict(
    model: Cognate,
    part: Batch,
    device: torch.device,
    say: Callable[[str], None],
    beside: Callable[[], object] = lambda: None,
    *,
    measures: bool = True,
) -> bool:
    """Whether all of a step's passes have a deterministic form; what has none is said."""
    try:
        with strictly(True):
            for measure in (False, True) if measures else (False,):
                _try(model, part, device, measure=measure)
            beside()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        say(f"a resumed run may differ in its last bits: {str(error).split(',')[0]}")
        return False
    return True


def ways_to_compile(device: torch.device, dtype: torch.dtype, before: Compiled | None = None) -> Sequence[Compiled]:
    """What to try, the best first; of a resumed run, from what it was compiled as `before`. dtype: of activations"""
    whole: Sequence[Compiled] = () if device.type == "cpu" else ("flex", "whole") if has_flex(device, dtype) else ("whole",)
    ways: Sequence[Compiled] = (*whole, "regions")
    if before == "nothing":
        return ()
    return ways[ways.index(before) :] if before in ways else ways


def compile_as(model: Cognate, way: Compiled) -> None:
    # torch keeps no graph with an autograd function that is not its own unless told to, and a resumed run would wait for each again.
    # It knows such a graph by what both its passes do (a test).
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    inductor = importlib.import_module("torch._inductor.config")  # here, because it brings the compiler with it
    inductor.deterministic = torch.are_deterministic_algorithms_enabled()  # type: ignore[attr-defined]
    if way == "regions":
        model.compile_regions()
    else:
        model.compile(flex=way == "flex")


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile can be expected to work; without one of these it cannot."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (7, 0) and shutil.which(os.environ.get("CC", "gcc")) is not None
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def rows_at_once(
    model: Cognate,
    sample: Callable[[], Batch],
    training: TrainingConfig,
    device: torch.device,
    before: int | None,
    rows_at_most: int | None = None,
) -> int:
    """The largest divisor of the batch size that fits, on a CPU that pays, of `rows_at_most` at most; `before`, if it does."""
    batch_size = training.batch_size
    most = min(each for each in (batch_size, training.micro_batch_size, rows_at_most) if each is not None)
    if training.micro_batch_size is not None:
        return _divisor(batch_size, most)
    if device.type != "cuda":
        return _divisor(batch_size, min(most, before or _enough(training, device)))
    few, more = max(1, most // 8), max(1, most // 4)  # of what is known to be too much, nothing is tried
    if few == more:
        return _divisor(batch_size, most)
    # Measured, not estimated: what a few rows need, and what twice as many need beyond that.
    batch = sample()
    peaks = [_peak(model, _rows_of(batch, 0, rows), device, has_dropout=training.dropout > 0) for rows in (few, more)]
    torch.cuda.empty_cache()
    row = max(1, (peaks[1] - peaks[0]) // (more - few))
    state = 4 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())  # the optimizer's, and its work
    free = available(training, device)
    fits = max(1, (free - state - (peaks[0] - few * row)) * 9 // 10 // row)
    # What is thrown away at once grows more slowly than the rows, so more may fit than those few tell: tried where it matters.
    rows = _divisor(batch_size, min(most, before or most))
    while rows > fits and not _passes(model, _rows_of(batch, 0, rows), device, state + free // 10, has_dropout=training.dropout > 0):
        rows = _divisor(batch_size, rows // 2)
    return rows


def _enough(training: TrainingConfig, device: torch.device) -> int:
    """Rows beyond which more at once are no faster."""
    if device.type != "cpu":
        return training.batch_size
    return _divisor(training.batch_size, cpu_rows(training.sequence_length))


def cpu_rows(length: int) -> int:
    """Rows of so many tokens that a CPU takes at once."""
    return max(1, CPU_TOKENS // length)


def _passes(model: Cognate, part: Batch, device: torch.device, reserve: int, *, has_dropout: bool) -> bool:
    """Whether the measured passes of a step find the memory they take, where `reserve` bytes more are taken."""
    taken = []
    try:
        taken.append(torch.empty(reserve, dtype=torch.uint8, device=device))
        _try(model, part, device, measure=True, has_dropout=has_dropout)
    except torch.OutOfMemoryError:
        return False
    finally:
        taken.clear()
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def rows_that_fit(model: Cognate, batch: Batch, rows: int, training: TrainingConfig, device: torch.device, *, measures: bool = True) -> int:
    """`rows`, or fewer where the passes of a step of so many, plain and measured, take more memory than there is."""
    while True:
        try:
            for measure in (False, True) if measures else (False,):
                _try(model, _rows_of(batch, 0, rows), device, measure=measure, has_dropout=training.dropout > 0)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows = _divisor(training.batch_size, rows // 2)
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        else:
            return rows


def keep_within(limit: int, device: torch.device) -> None:
    """Let this process's tensors take `limit` bytes of the GPU at most; what it takes besides, some hundred MiB, is not counted."""
    total = torch.cuda.get_device_properties(device).total_memory
    # A device without a number it refuses; without a device it takes the current one.
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device if device.index is not None else None)


def available(training: TrainingConfig, device: torch.device) -> int:
    """Bytes of GPU memory that this process holds or may still take."""
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device)
    return free if training.gpu_memory_gb is None else min(free, int(training.gpu_memory_gb * GIB))


def parts(batch: Batch, rows: int, device: torch.device) -> Iterator[tuple[Batch, float]]:
    """A batch in parts of `rows` rows on the device, and each part's share of the targets that count."""
    batch_size = len(batch.tokens)
    counted = (batch.targets != IGNORED).sum(1)
    for start in range(0, batch_size, rows):
        share = counted[start : start + rows].sum() / counted.sum().clamp(min=1)
        yield _on(_rows_of(batch, start, rows), device), float(share)


class FiniteLosses:
    """Notices a loss that is not a finite number, on a GPU up to two steps late: it is never waited for, so it is never idle.

    Waiting for the step before the last one keeps the host from running further ahead.
    """

    AHEAD = 2

    def __init__(self, device: torch.device) -> None:
        self._is_late = device.type == "cuda"
        self._open: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, losses: Sequence[Loss]) -> None:
        is_finite = torch.stack([loss.loss.detach() for loss in losses]).isfinite().all()
        event = None
        if self._is_late:
            is_finite = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(is_finite, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._open.append((step, is_finite, event))

    @property
    def ahead(self) -> int:
        """Steps whose losses the device has not been waited for."""
        return len(self._open)

    def bad_step(self, *, wait: bool) -> int | None:
        """The first step that is known for its loss; `wait` to know of all."""
        while self._open and (wait or not self._is_late or len(self._open) > self.AHEAD):
            step, is_finite, event = self._open.popleft()
            if event is not None:
                event.synchronize()
            if not is_finite:
                return step
        return None


def _try(model: Cognate, part: Batch, device: torch.device, *, measure: bool = False, has_dropout: bool = False) -> None:
    """The passes of a step; with dropout by rates of 0, so that the graph of the real ones is what is compiled."""
    part = _on(part, device)
    dropout = torch.zeros(part.tokens.shape, device=device) if has_dropout else None
    loss = model.loss(part.tokens, part.targets, part.documents, measure=measure, dropout=dropout).loss
    loss.backward()  # type: ignore[no-untyped-call]


def _peak(model: Cognate, part: Batch, device: torch.device, *, has_dropout: bool = False) -> int:
    """Bytes at most allocated during a loss and its gradient."""
    model.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats(device)
    _try(model, part, device, has_dropout=has_dropout)
    return torch.cuda.max_memory_allocated(device)


def _divisor(batch_size: int, most: int) -> int:
    return max(rows for rows in range(1, min(most, batch_size) + 1) if batch_size % rows == 0)


def _rows_of(batch: Batch, start: int, rows: int) -> Batch:
    return Batch(*(part[start : start + rows] for part in (batch.tokens, batch.targets, batch.documents)))


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(to_device(part, device) for part in (batch.tokens, batch.targets, batch.documents)))
