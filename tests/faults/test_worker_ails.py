"""A worker that hangs is replaced; one that runs out of memory says of which, and its run goes on from its checkpoint."""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from app.services import resumption
from cognate.events import Failure, Kind
from cognate.model import Cognate
from cognate.rundir import Places, RunDir, read_json
from cognate.worker import explain, run_attempt
from tests.faults.processes import count, end, next_attempt, start, times, train_once
from tests.faults.test_service_killed import assert_rows_are_those_of_the_journals
from tests.service import launch, serving, until, wait_for
from tests.training.runs import digests, events, new_run, reproducible_rows, tiny

STEPS = 6
pytestmark = pytest.mark.timeout(3600)


def test_a_worker_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP stands for whatever never returns: a deadlock, a call that is stuck in a driver."""
    monkeypatch.setattr(resumption, "AFTER_S", 0.01)
    monkeypatch.setattr(resumption, "AFTER_MOST_S", 0.1)
    with serving(tmp_path, "--step-seconds", "0.01", auto_resume=1000, stall_after_s=1.5, on_stall="restart") as client:
        run_id = launch(client, steps=1_000_000)
        for number in range(1, times(20) + 1):
            attempt = RunDir(tmp_path / "runs" / run_id).attempt(number)
            until(lambda n=number: (run := client.get(f"/v1/runs/{run_id}").json())["attempt"] == n and run["state"] == "running")  # type: ignore[misc]
            os.kill(read_json(attempt.started)["pid"], signal.SIGSTOP)
            until(lambda n=number: client.get(f"/v1/runs/{run_id}").json()["attempt"] == n + 1)  # type: ignore[misc]
        wait_for(client, run_id, "running")
        client.post(f"/v1/runs/{run_id}/stop")
        wait_for(client, run_id, "stopped")
        assert_rows_are_those_of_the_journals(tmp_path, run_id)
    count("9 hanging worker", f"{times(20)} SIGSTOPs, each worker replaced")


# --- memory -----------------------------------------------------------------------------------------------------


def train_without_gpu_memory(run: Path, cache: Path, batch: int) -> None:
    """The allocator of a GPU gives up at the given batch. On one processor, as train_once(): two threads round otherwise than one."""
    os.sched_setaffinity(0, {random.choice(list(os.sched_getaffinity(0)))})
    loss, batches = Cognate.loss, 0

    def exhausted(model: Cognate, *arguments: Any, **options: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(model, *arguments, **options)

    Cognate.loss = exhausted  # type: ignore[method-assign]
    sys.exit(run_attempt(next_attempt(RunDir(run)), Places(None, cache), "cpu") is Kind.FAILED)


def test_a_gpu_without_memory_is_the_reason_and_the_run_goes_on(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    draw = random.Random(15)
    for number in range(times(20)):
        run = new_run(tmp_path / f"run_{number}", whole.config())
        batch = draw.randint(1, STEPS)
        assert end(start(train_without_gpu_memory, run.path, cache, batch)) == 1
        assert events(run)[-1].data["reason"] == Failure.OOM_CUDA
        assert all(step < batch for step, _ in run.complete_checkpoints())
        assert end(start(train_once, run.path, cache)) == 0
        assert digests(run, STEPS) == digests(whole, STEPS)
        assert reproducible_rows(run) == reproducible_rows(whole)
    count("9 out of GPU memory", f"{times(20)} of {times(20)} failed with oom_cuda, resumed bit-identically")


def train_within_memory(run: Path, cache: Path, more: int) -> None:
    """One attempt whose process may have `more` bytes besides what it has now."""
    attempt = next_attempt(RunDir(run))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))
    sys.exit(run_attempt(attempt, Places(None, cache), "cpu") is Kind.FAILED)


def test_a_machine_without_memory_is_the_reason(cache: Path, tmp_path: Path) -> None:
    draw = random.Random(16)
    for number in range(times(20)):
        config = tiny(training={"max_steps": 2, "batch_size": 256, "sequence_length": 512}, data={"synthetic_problems": 20_000})
        run = new_run(tmp_path / f"run_{number}", config)
        assert end(start(train_within_memory, run.path, cache, draw.randint(100, 300) << 20)) == 1
        assert events(run)[-1].data["reason"] == Failure.OOM_HOST, events(run)[-1].data
        assert run.complete_checkpoints() == []
    count("9 out of host memory", f"{times(20)} of {times(20)} failed with oom_host")


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_a_gpu_is_full_whoever_says_so(message: str) -> None:
    """The driver and its libraries take memory past torch's allocator, and fail with errors of their own."""
    assert explain(RuntimeError(message)) is Failure.OOM_CUDA


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError("Unexpected error from cudaGetDeviceCount(). ... Error 803: system has unsupported display driver"),
    ],
)
def test_a_gpu_that_fails_is_the_reason(error: RuntimeError) -> None:
    """It is not the run's fault: launched again, perhaps elsewhere, it goes on."""
    assert explain(error) is Failure.GPU_ERROR
    assert explain(torch.AcceleratorError("CUDA error: out of memory")) is Failure.OOM_CUDA
    assert explain(RuntimeError("shapes cannot be multiplied")) is Failure.ERROR
