"""local.py on made-up attempts: when one counts as ended, and whom a kill ends."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.executors import local
from app.executors.base import Exit
from app.executors.local import LocalExecutor
from cognate import shim
from cognate.rundir import AttemptDir, RunDir, write_json
from tests.fake_nvml import FakeGpu, fake_gpu

WORKER = 4242


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_gpu(monkeypatch, load=None)


@pytest.fixture
def executor(gpu: FakeGpu, tmp_path: Path) -> LocalExecutor:
    return LocalExecutor(None, tmp_path / "cache", 1)


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    """One whose lease is free."""
    attempt = RunDir(tmp_path / "run").attempt(1)
    attempt.create()
    return attempt


def begun(attempt: AttemptDir, **different: Any) -> None:
    """What the shim writes down of a worker."""
    known = {"pid": WORKER, "create_time": 1, "boot_id": shim.boot_id(), "shim_pid": 1, "device": "cuda:0"}
    write_json(attempt.started, {**known, **different})


def test_an_attempt_has_ended_once_its_gpu_counts_no_memory_to_its_worker(
    executor: LocalExecutor, attempt: AttemptDir, gpu: FakeGpu
) -> None:
    begun(attempt)
    gpu.holders = [WORKER]
    assert executor.ended(attempt) is None
    gpu.holders = [WORKER + 1]
    assert executor.ended(attempt) == Exit()


def test_a_driver_that_never_lets_go_is_believed_for_half_a_minute(
    executor: LocalExecutor, attempt: AttemptDir, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for another one when how it ended could not be written down at the first try."""
    begun(attempt)
    gpu.holders = [WORKER]
    clock = SimpleNamespace(now=1e6)
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: clock.now))
    seen = []
    for passed in (0, 29, 30, 31):
        clock.now = 1e6 + passed
        seen.append(executor.ended(attempt))
    assert seen == [None, None, Exit(), Exit()]


@pytest.mark.parametrize("rebooted", [False, True])
def test_a_worker_that_left_no_record_may_have_gone_with_the_machine(executor: LocalExecutor, attempt: AttemptDir, rebooted: bool) -> None:
    begun(attempt, boot_id="another" if rebooted else shim.boot_id())
    assert executor.ended(attempt) == Exit(rebooted=rebooted)


@pytest.mark.parametrize(
    ("different", "ended_by"),
    [({}, signal.SIGKILL), ({"create_time": 1}, signal.SIGTERM), ({"boot_id": "another"}, signal.SIGTERM)],
)
def test_a_kill_ends_the_worker_and_nobody_who_was_given_its_pid(
    executor: LocalExecutor, attempt: AttemptDir, different: dict[str, Any], ended_by: signal.Signals
) -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    begun(attempt, **{**shim.identity(process.pid), **different})
    executor.kill(attempt)
    process.terminate()  # of two signals the first one ends it
    assert process.wait() == -ended_by
