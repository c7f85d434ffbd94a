"""The far side of the boundary: `python -m cognate.worker ATTEMPT_DIR` trains one attempt and says how it ended.

Told only by files (rundir.py) and three environment variables: COGNATE_DATA_DIR, COGNATE_CACHE_DIR, COGNATE_DEVICE.
Whatever goes wrong becomes one `failed` event with a reason a person can act on; the traceback is in worker.log.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import sys
import traceback
from pathlib import Path

# Before torch loads. cuBLAS is deterministic only with a fixed workspace.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# How long a thread that waits for the others spins before it sleeps: docs/decisions/0004.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch

from cognate import shim
from cognate.config import resolve
from cognate.data.files import DataMissing, DataUnreadable
from cognate.events import EXIT_DISK_FULL, Failure, Kind
from cognate.model import Cognate
from cognate.optimizer import MuGrokfast
from cognate.precision import use_whole_vectors
from cognate.rundir import AttemptDir, Journal, Places, read_limits
from cognate.training.control import ControlFile
from cognate.training.inputs import DataChanged
from cognate.training.loop import train
from cognate.training.reporter import Listener, Reporter

EXIT_FAILED = 1
# What else than torch's own allocator says that a GPU is full: the driver, and the libraries that take their workspace from it.
NO_GPU_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
# What torch says where a GPU fails, and where none can be begun with.
GPU_FAILED = ("CUDA error: ", "CUDA unknown error", "CUDA driver initialization failed", "No CUDA GPUs are available", "cudaGetDeviceCount")


def main(arguments: list[str] | None = None) -> int:
    (attempt,) = arguments if arguments is not None else sys.argv[1:]
    keep_freed_memory()
    if attempt == "--spare":
        preload()
        attempt = shim.await_assignment()
    device = os.environ.get("COGNATE_DEVICE")
    places = Places(_path("COGNATE_DATA_DIR"), _path("COGNATE_CACHE_DIR"))
    return EXIT_FAILED if run_attempt(AttemptDir(Path(attempt)), places, device) is Kind.FAILED else 0


def keep_freed_memory() -> None:
    """Let malloc keep what a step frees for the next one. The kernel would hand it out anew, page by page and each filled with zeros:
    4 to 10 % of a step on a CPU (docs/performance.md)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return
    for limit in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt(limit, 2**31 - 1)


def preload() -> None:
    """Load what the first step of an attempt would load, so that a spare worker begins with it.

    Nothing here asks how many GPUs there are: none is visible to a spare yet, and torch asks once in a process. So a build with CUDA
    computes no gradient, for which torch would ask, also on the CPU.
    """
    model = Cognate(resolve("quickstart").model)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    optimizer = MuGrokfast(model.named_parameters())
    loss = model.loss(tokens, tokens).loss
    if torch.version.cuda is None:
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def run_attempt(attempt: AttemptDir, places: Places, device: str | None, *listeners: Listener) -> Kind:
    """Train `attempt` in this process; how it ended."""
    reporter = Reporter(Journal(attempt), *listeners)
    if places.cache_dir is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(places.cache_dir.absolute() / "compiled"))
    try:
        chosen = choose_device(attempt.run.config().training.device if device is None else device)
        make_deterministic(chosen)
        use_whole_vectors(chosen)
        if chosen.index is not None and chosen.type == "cuda":
            torch.cuda.set_device(chosen)  # what names no device, as an event on a stream does, is of this one
        return train(attempt.run, reporter, ControlFile(attempt).poll, places, chosen, read_limits(attempt).rows_at_most)
    except Exception as error:  # the edge of the process: everything is answered here, with a reason
        reason = explain(error)
        if reason is not Failure.DATA_MISSING:  # whose words say all there is, also to a person at a terminal
            print_traceback()
        try:
            reporter.say(Kind.FAILED, reason=reason, detail=f"{type(error).__name__}: {error}"[:2000])
        except OSError as refused:  # the exit code and worker.log are all there is then
            print_traceback()
            if explain(refused) is Failure.DISK_FULL:
                sys.exit(EXIT_DISK_FULL)
        return Kind.FAILED


def print_traceback() -> None:
    """To worker.log, which may be on a full disk too: what it does not take must cost neither the last word nor the exit code."""
    try:
        traceback.print_exc()
    except OSError:
        sys.stderr = io.StringIO()  # Python would try again at the end, and leave with a code of its own


def explain(error: BaseException) -> Failure:
    """The reason of a failure, from its exception."""
    match error:
        case DataMissing() | DataUnreadable() | DataChanged():
            return Failure.DATA_MISSING
        case torch.OutOfMemoryError():
            return Failure.OOM_CUDA
        case MemoryError():
            return Failure.OOM_HOST
        case RuntimeError() if "DefaultCPUAllocator" in str(error):
            return Failure.OOM_HOST
        case RuntimeError() if any(words in str(error) for words in NO_GPU_MEMORY):
            return Failure.OOM_CUDA
        case torch.AcceleratorError():
            return Failure.GPU_ERROR
        case RuntimeError() if any(words in str(error) for words in GPU_FAILED):
            return Failure.GPU_ERROR
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return Failure.DISK_FULL
    return Failure.ERROR


def choose_device(wanted: str) -> torch.device:
    """The device of a configuration's `device`; auto takes a GPU when there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def make_deterministic(device: torch.device) -> None:
    """Same inputs, same bits, on the same machine; resume depends on it."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # On CUDA an operation without a deterministic form warns instead of failing a night's run; a step's passes are stricter (execution.py).
    # (use_deterministic_algorithms() is the same, but imports the compiler: a second of CPU time.)
    torch.set_deterministic_debug_mode("warn" if device.type == "cuda" else "error")
    # torch would then fill all memory it hands out with NaN, to show who reads what was never written: about 1 % of a step, and a kernel
    # each on a GPU. The tests, which run with the fill, are where that shows.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # Of the kernels of SDPA it is the one that strict passes do not take; elsewhere it plans anew for each new shape, for most of a second.
    torch.backends.cuda.enable_cudnn_sdp(False)


def _path(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


if __name__ == "__main__":
    sys.exit(main())
