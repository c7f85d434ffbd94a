"""A service that a test makes up, and a real one whose workers are those of tests/pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner, Result

from app.client import evaluations, terminal
from app.client.api import Api

SERVE = Path(__file__).parents[1] / "pages" / "serve.py"
Answer = tuple[int, dict[str, Any]]


def run_id(number: int) -> str:
    return f"run_01a204c6-4287-72a3-ab33-{number:012x}"


def a_run(number: int, **more: Any) -> dict[str, Any]:
    """What a service says of a run."""
    config = {"preset": "quickstart", "seed": 7, "training": {"max_steps": 60, "batch_size": 8}}
    return {
        "id": run_id(number), "name": f"tiny-{number}", "preset": "quickstart", "tags": [], "notes": None,
        "forked_from": None, "state": "running", "state_reason": None,
        "state_detail": None, "phase": "training", "allowed_commands": ["pause", "stop", "kill"], "attempt": 1, "queue_position": None,
        "created_at": "2026-01-02T03:04:05+00:00", "metrics": {"loss": 2.5}, "alert_count": 0, "alerts": [], "config": config, "plan": None,
        "progress": {"step": 15, "total_steps": 60, "percent": 25.0, "epoch": 0.25, "tokens_per_s": 1234.5, "eta_s": 83.0},
        **more,
    }  # fmt: skip


class FakeService:
    """Answers by method and path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.keys: list[str | None] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.answers: dict[tuple[str, str], Answer | Callable[[httpx.Request], Answer]] = {}
        self.page = 500

    def have(self, *runs: dict[str, Any]) -> None:
        self.runs |= {run["id"]: run for run in runs}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path, query = request.url.path, dict(request.url.params)
        self.asked.append((request.method, path, json.loads(request.content) if request.content else query))
        self.keys.append(request.headers.get("Idempotency-Key"))
        chosen = self.answers.get((request.method, path))
        status, body = (chosen(request) if callable(chosen) else chosen) if chosen else self._usual(request.method, path, query)
        return httpx.Response(status, json=body)

    def _usual(self, method: str, path: str, query: dict[str, str]) -> Answer:
        name = path.removeprefix("/v1/runs/")
        if path == "/v1/runs":
            ids = [found for found in sorted(self.runs, reverse=True) if found < query.get("after", "z")]
            ids = [found for found in ids if query.get("name", self.runs[found]["name"]) == self.runs[found]["name"]]
            ids, left = ids[: min(int(query["limit"]), self.page)], len(ids) > self.page
            return 200, {"data": [self.runs[found] for found in ids], "has_more": left, "next_cursor": ids[-1] if left else None}
        if method == "GET" and name in self.runs:
            return 200, self.runs[name]
        return 404, {"title": "Not Found", "status": 404, "detail": f"no run {name!r}"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    """What `cognate` below talks to."""
    fake = FakeService()
    monkeypatch.setattr(terminal, "Api", lambda url, token: Api(url, token, httpx.MockTransport(fake)))
    for name in ("COGNATE_URL", "COGNATE_TOKEN", "COGNATE_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return fake


def cognate(*arguments: str, app: typer.Typer = evaluations.runs, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "200", **environment})


@pytest.fixture(scope="package")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service at work."""
    places = {"COGNATE_HOME": str(tmp_path_factory.mktemp("home")), "COGNATE_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    environment = {**os.environ, **places, "COGNATE_TOKEN": ""}
    with subprocess.Popen([sys.executable, str(SERVE), "0"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()
