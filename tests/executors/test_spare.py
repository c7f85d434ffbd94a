"""A worker that is loaded ahead of time is a worker like any other: found, commanded, killed, recorded."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from starlette.testclient import TestClient

from app.executors import local
from cognate.rundir import RunDir, lease_is_free, read_json
from cognate.worker import preload
from tests.service import HOLD, launch, serving, steps_of, until, wait_for


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "SPARE_AFTER_S", 0.0)


def spares(folder: Path) -> list[psutil.Process]:
    """Processes with --spare on their command line: a shim and a worker for each."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # gone, or ended and not yet waited for
            if "--spare" in process.cmdline():
                found.append(process)
    return found


def log_of(client: TestClient, run_id: str) -> str:
    return str(client.get(f"/v1/runs/{run_id}/logs").json()["text"])


def test_a_spare_takes_a_run_and_another_takes_its_place(tmp_path: Path) -> None:
    with serving(tmp_path, *HOLD, spare=True) as client:
        until(lambda: len(spares(tmp_path)) == 2)
        waiting = {process.pid for process in spares(tmp_path)}
        run_id = launch(client, steps=30)
        wait_for(client, run_id, "running")
        started = read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).started)
        assert started["pid"] in waiting
        until(lambda: len(steps_of(client, run_id)) > 3)
        client.post(f"/v1/runs/{run_id}/pause")
        wait_for(client, run_id, "paused")
        client.post(f"/v1/runs/{run_id}/resume")
        wait_for(client, run_id, "completed")
        assert steps_of(client, run_id, "all") == list(range(1, 31))
        assert log_of(client, run_id) == "fake worker of attempt 2 that was a spare\n"
        assert read_json(RunDir(tmp_path / "runs" / run_id).attempt(2).exit)["code"] == 0
    until(lambda: not spares(tmp_path))  # they do not outlive their server


def test_a_spare_at_work_is_killed_like_any_worker(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "hang@3", spare=True) as client:
        until(lambda: len(spares(tmp_path)) == 2)
        run_id = launch(client, steps=30)
        until(lambda: len(steps_of(client, run_id)) == 3)
        attempt = RunDir(tmp_path / "runs" / run_id).attempt(1)
        assert not lease_is_free(attempt)
        client.post(f"/v1/runs/{run_id}/kill")
        wait_for(client, run_id, "stopped")
        assert lease_is_free(attempt)
        assert not psutil.pid_exists(read_json(attempt.started)["pid"])


def test_what_a_spare_leaves_behind_holds_the_lease_and_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "child@3", spare=True) as client:
        until(lambda: len(spares(tmp_path)) == 2)
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
        assert not [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path / "runs") in str(process.info["cmdline"])]


def test_a_spare_whose_worker_died_is_replaced_before_a_run_is_given_to_it(tmp_path: Path) -> None:
    """As the kernel ends what takes memory and does nothing."""
    with serving(tmp_path, spare=True) as client:
        until(lambda: len(spares(tmp_path)) == 2)
        shim, worker = sorted((process.pid for process in spares(tmp_path)), key=lambda pid: psutil.Process(pid).ppid() != os.getpid())
        os.kill(worker, 9)
        until(lambda: len(found := {process.pid for process in spares(tmp_path)}) == 2 and not found & {shim, worker})
        assert wait_for(client, launch(client, steps=3), "completed", "interrupted")["state"] == "completed"


def test_spares_that_die_at_once_are_not_started_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loads 0.4 GB; what ends one, such as want of memory, ends the next."""
    monkeypatch.setattr(local, "SPARE_AFTER_S", 0.1)
    started, start = [], local._start_shim
    monkeypatch.setattr(local, "_start_shim", lambda *given: (started.append(given), start(*given))[1])
    executor = local.LocalExecutor(None, tmp_path, 1, ["/bin/false"], spare=True)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        executor.tend()
        time.sleep(0.02)
    executor.close()
    assert 2 <= len(started) <= 6  # 0.2, 0.4, 0.8, 1.6 s apart


def test_without_its_spare_a_run_is_launched_as_ever(tmp_path: Path) -> None:
    """Both the shim and the worker of the spare are killed; neither loses the run."""
    with serving(tmp_path, spare=True) as client:
        for victim in (0, 1):
            until(lambda: len(spares(tmp_path)) == 2)
            os.kill(sorted(process.pid for process in spares(tmp_path))[victim], 9)
            run_id = launch(client, steps=3)
            run = wait_for(client, run_id, "completed", "interrupted")
            if run["state"] == "interrupted":  # the dead worker was given the run before anybody knew
                assert run["state_reason"] == "signal"
                client.post(f"/v1/runs/{run_id}/resume")
                wait_for(client, run_id, "completed")


def test_loading_ahead_does_not_ask_how_many_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch asks once in a process, and computing a gradient asks: a spare, to which none is visible yet, would never have one."""

    def refuse(*_: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for place in (torch.Tensor, torch.autograd):
        monkeypatch.setattr(place, "backward", refuse)
    preload()


@pytest.mark.gpu
def test_a_spare_can_use_the_gpu_it_is_given() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    program = (
        "import os, torch; from cognate.worker import preload; preload(); "
        "os.environ['CUDA_VISIBLE_DEVICES'] = '0'; torch.ones(1, device='cuda', requires_grad=True).sum().backward()"
    )
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=True)
