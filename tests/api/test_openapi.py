"""The OpenAPI document says what the service does: its form by hand, its truth by schemathesis against the running service."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from app.api.document import operations
from app.api.errors import PROBLEMS
from app.executors.local import LocalExecutor
from app.main import create_app
from app.settings import Settings
from tests.service import FAKE_WORKER, free_port, launch, until, wait_for

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    app = create_app(Settings(home=tmp_path_factory.mktemp("home"), token=SecretStr(TOKEN)))
    return app.openapi()


def test_every_operation_has_a_name_of_its_own_and_a_summary(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() and name == name.lower() for name in ids)
    assert all(operation.get("summary") for _, _, operation in operations(document))


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    bodies = [operation["requestBody"] for _, _, operation in operations(document) if "requestBody" in operation]
    assert len(bodies) == 12
    assert all(media["example"] for body in bodies for media in body["content"].values())


def test_every_refusal_is_declared_as_a_problem(document: dict[str, Any]) -> None:
    """All but readiness, which says in its own form what is wrong."""
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status >= "400":
                assert answer["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert {PROBLEMS[name][0] for name in answer["x-problems"]} == {int(status)}


def test_all_but_the_open_paths_need_the_token(document: dict[str, Any]) -> None:
    assert document["security"] == [{"bearer_token": []}]
    is_open = {path for _, path, operation in operations(document) if operation.get("security") == []}
    assert is_open == {"/healthz", "/readyz"}
    assert all(("401" in operation["responses"]) == (path not in is_open) for _, path, operation in operations(document))


def test_headers_are_declared_where_they_are_sent(document: dict[str, Any]) -> None:
    sent = {
        (operation["operationId"], status, name)
        for _, _, operation in operations(document)
        for status, answer in operation["responses"].items()
        for name in answer.get("headers", {})
        if status < "400"
    }
    made = {(name, status, "Location") for name in ("launch_run", "fork_run", "launch_group") for status in ("200", "201")}
    made |= {
        (name, status, "Location")
        for name in ("start_evaluation", "fetch_dataset", "measure_diversity", "build_handoff", "measure_readiness")
        for status in ("200", "202")
    }
    made |= {(name, "202", "Location") for name in ("get_run_report", "get_group_report")}
    assert sent == made | {("get_run", "200", "ETag"), ("get_run", "304", "ETag"), ("edit_run", "200", "ETag")}


@contextmanager
def listening(home: Path, **settings: Any) -> Iterator[str]:
    """The service with fake workers on a port of its own; its address."""
    executor = LocalExecutor(None, home / "cache", 2, [sys.executable, str(FAKE_WORKER)])
    app = create_app(Settings(home=home, auto_resume=0, shutdown_grace_s=5, **settings), executor)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical", ws="websockets-sansio", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


# Data that has the form a schema can state may still be refused, and rightly. Besides these: a key that came before.
REFUSED_THOUGH_WELL_FORMED = {
    "launch_run": "422",  # a configuration is judged by the rules between its fields too, and a preset has to exist
    "launch_group": "422",
    "fork_run": "422",
    "edit_run": "412",  # no run is in the version that was made up
    "delete_run": "412",
    "get_metrics": "422",  # a list of metrics, separated by commas, is a string to a schema
    "query_metrics": "422",
}
ENDLESS = ("events", "run_events")  # server-sent events: schemathesis waits for the end of an answer; tests/api/test_stream.py reads them
ACCEPTED = ["2xx", "3xx", "401", "403", "404", "409", "429", "5xx"]  # schemathesis' own; 5xx is what not_a_server_error is for


def explored(url: str, document: dict[str, Any], folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """schemathesis' own command with all its checks."""
    keyed = {
        operation["operationId"]: "422" for _, _, operation in operations(document) if "idempotency-key" in str(operation.get("parameters"))
    }
    lines = []
    for name, status in {**keyed, **REFUSED_THOUGH_WELL_FORMED}.items():
        lines += ["[[operations]]", f'include-operation-id = "{name}"']
        lines += [f"checks.positive_data_acceptance.expected-statuses = {[*ACCEPTED, status]}"]
    configuration = folder / "schemathesis.toml"
    configuration.write_text("\n".join(lines))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration), "run", f"{url}/openapi.json"]
    command += ["--checks", "all", "-H", f"Authorization: Bearer {TOKEN}", "--request-timeout", "10", "--seed", "1", *options]
    command += [word for name in ENDLESS for word in ("--exclude-operation-id", name)]
    return subprocess.run(command, cwd=folder, env={**os.environ, "NO_COLOR": "1"}, capture_output=True, text=True, check=False)


def explore(document: dict[str, Any], home: Path, examples: int) -> None:
    with listening(home / "home", token=SecretStr(TOKEN)) as url:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            wait_for(client, launch(client, steps=3), "completed")
        done = explored(url, document, home, "--max-examples", str(examples))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_does_what_the_document_says(document: dict[str, Any], tmp_path: Path) -> None:
    explore(document, tmp_path, 2)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_the_service_does_what_the_document_says_at_length(document: dict[str, Any], tmp_path: Path) -> None:
    explore(document, tmp_path, 100)
