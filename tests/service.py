"""The service under test: in this process with fake workers, or as the real command in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from starlette.testclient import TestClient, WebSocketTestSession

from app.executors.local import LocalExecutor
from app.main import create_app
from app.settings import Settings

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
FAKE_JOB = Path(__file__).with_name("fake_job.py")
HOLD = ("--step-seconds", "0.01", "--fault", "hold@20")  # a first attempt that is not over before it is told to leave
URL = "http://127.0.0.1:8000"
T = TypeVar("T")


def until(look: Callable[[], T], timeout_s: float = 30.0) -> T:
    """The first truthy answer of `look`; raises AssertionError when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while not (answer := look()):
        assert time.monotonic() < deadline, f"still {answer!r} after {timeout_s} s"
        time.sleep(0.01)
    return answer


@contextmanager
def serving(home: Path, *worker_options: str, **settings: Any) -> Iterator[TestClient]:
    """The application in this process; its workers are fake ones, in real processes under real shims."""
    worker = [sys.executable, str(FAKE_WORKER), *worker_options]
    job = [sys.executable, str(FAKE_JOB)]
    executor = LocalExecutor(None, home / "cache", settings.pop("cpu_slots", 1), worker, job=job, spare=settings.pop("spare", False))
    # What a fault does is seen as it is, and no data folder of the environment is taken, unless a test asks for it.
    settings = {"auto_resume": 0, "data_dir": None, **settings}
    with TestClient(create_app(Settings(home=home, **settings), executor), base_url=URL) as client:
        yield client


def connect(client: TestClient, path: str, **options: Any) -> WebSocketTestSession:
    """A websocket under the name the service answers to."""
    return client.websocket_connect(URL.replace("http", "ws") + path, **options)


def launch(client: TestClient | httpx.Client, steps: int = 20, **more: Any) -> str:
    answer = client.post("/v1/runs", json={"preset": "quickstart", "config": {"training": {"max_steps": steps}}, **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def wait_for(client: TestClient | httpx.Client, run_id: str, *states: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """The run once it is in one of `states`."""

    def look() -> dict[str, Any] | None:
        run: dict[str, Any] = client.get(f"/v1/runs/{run_id}").json()
        return run if run["state"] in states else None

    return until(look, timeout_s)


def steps_of(client: TestClient | httpx.Client, run_id: str, attempts: str = "effective") -> list[int]:
    return list(client.get(f"/v1/runs/{run_id}/metrics", params={"keys": "loss", "attempts": attempts}).json()["columns"]["step"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`python -m app` in a process of its own, to be killed and started again."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.environment = {
            **os.environ,
            "COGNATE_HOME": str(home),
            "COGNATE_PORT": str(self.port),
            "COGNATE_AUTO_RESUME": "0",
            **environment,
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str, launcher: tuple[str, ...] = ("-m", "app")) -> None:
        with (self.home.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen([sys.executable, *launcher, *options], env=self.environment, stdout=log, stderr=log)
        until(self.answers)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.home.parent / "server.log").read_text()
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False
