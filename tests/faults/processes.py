"""Real processes in milliseconds: workers that train and servers that serve, forked from one that has imported both.

COGNATE_FAULTS_SCALE is the share of each row's full count that is run: 1 by `make test-faults`, 0.02 otherwise.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import psutil
import torch
import torch._dynamo  # what the first optimizer would load
import uvicorn

from app.executors.local import LocalExecutor
from app.main import create_app
from app.services import resumption
from app.settings import Settings
from cognate.rundir import AttemptDir, Journal, Places, RunDir
from cognate.training.control import ControlFile
from cognate.training.loop import train
from cognate.training.reporter import Reporter
from tests.service import FAKE_WORKER, free_port, until

SCALE = float(os.environ.get("COGNATE_FAULTS_SCALE", "0.02"))
COUNTED: list[str] = []
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([__name__])
# pyarrow's allocator keeps an idle thread from its import on; torch's pools start with the first computation.
HARMLESS = {"python", "jemalloc_bg_thd"}


def times(full: int) -> int:
    """How often a row is run."""
    return max(1, round(full * SCALE))


def count(row: str, outcome: str) -> None:
    COUNTED.append(f"{row}: {outcome}")


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """`target` in a process of its own, which begins where all imports are done."""
    with patch.dict(os.environ, OPENBLAS_NUM_THREADS="1"):
        forkserver.ensure_running()
    process = FORK.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def end(process: BaseProcess, timeout_s: float = 60.0) -> int | None:
    """Its exit code once it has left."""
    process.join(timeout_s)
    assert process.exitcode is not None, f"still running after {timeout_s} s"
    return process.exitcode


# --- a worker -----------------------------------------------------------------------------------------------


def train_once(run: Path, cache: Path, prepare: Callable[[], None] = lambda: None) -> None:
    """One more attempt of `run` by the real loop. `prepare` arms a fault once the attempt's directory is made."""
    attempt = next_attempt(RunDir(run))
    prepare()
    train(attempt.run, Reporter(Journal(attempt)), ControlFile(attempt).poll, Places(None, cache), torch.device("cpu"))


def next_attempt(run: RunDir) -> AttemptDir:
    forked_alone()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    attempt = run.attempt(len(run.attempts()) + 1)
    attempt.create()
    return attempt


def forked_alone() -> None:
    """A fork copies one thread only: there must have been no other that matters."""
    threads = {path.read_text().strip() for path in Path(f"/proc/{os.getppid()}/task").glob("*/comm")}
    assert threads <= HARMLESS | {Path(f"/proc/{os.getppid()}/comm").read_text().strip()}, threads


# --- a server -----------------------------------------------------------------------------------------------


def serve(home: Path, port: int, worker: list[str], slots: int, settings: dict[str, Any]) -> None:
    resumption.AFTER_S, resumption.AFTER_MOST_S = 0.01, 0.1
    app = create_app(Settings(home=home, **settings), LocalExecutor(None, home / "cache", slots, worker))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        ws="websockets-sansio",
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


class Service:
    """The service in a process of its own, with fake workers, to be killed and started again."""

    def __init__(self, home: Path, *worker_options: str, slots: int = 1, **settings: Any) -> None:
        self.home = home
        self.port = free_port()
        self._worker = [sys.executable, str(FAKE_WORKER), *worker_options]
        self._slots, self._settings = slots, {"auto_resume": 1000, **settings}
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.process: BaseProcess | None = None

    def start(self) -> None:
        self.process = start(serve, self.home, self.port, self._worker, self._slots, self._settings)
        until(self._answers)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        end(self.process)

    def terminate(self) -> int | None:
        """SIGTERM; how it left."""
        assert self.process is not None
        self.process.terminate()
        return end(self.process)

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/runs/{run_id}").json()
        return found

    def family(self) -> list[psutil.Process]:
        """Shims and workers, whoever their parent is."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.home) in word for word in process.info["cmdline"] or []):
                found.append(process)
        return found

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.exitcode is None, "the server left"
        try:
            return self.client.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def service(home: Path, *worker_options: str, **settings: Any) -> Iterator[Service]:
    """A Service that serves; at the end it and its workers are gone."""
    found = Service(home, *worker_options, **settings)
    found.start()
    try:
        yield found
    finally:
        found.kill()
        for process in found.family():
            process.kill()
        found.client.close()
