"""The server, the shim, or all at once are SIGKILLed, or the service is told to end: what was answered holds, nothing runs twice.

Fake workers under real shims; the server is a process of its own where it is killed.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cognate.events import Event, Kind
from cognate.rundir import RunDir, lease_is_free, read_journal, read_json
from tests.faults.processes import Service, count, service, times
from tests.service import launch, until, wait_for

pytestmark = pytest.mark.timeout(3600)
FINAL = ("stopped", "completed", "failed")
# Where a run may be found when the last command that was answered is this one.
AFTER = {
    "pause": {"pausing", "paused", "completed"},
    "stop": {"stopping", "stopped", "completed"},
    "kill": {"stopping", "stopped", "completed"},
    "resume": {"queued", "starting", "running", "completed"},
}


def row_of(database: Path, run_id: str) -> list[tuple[int, int]]:
    """(attempt, step) of every row, in the order in which they came in."""
    connection = sqlite3.connect(database)
    found = connection.execute(
        "SELECT attempt, step FROM metric_row JOIN series ON number = series WHERE run_id = ? ORDER BY seq", (run_id,)
    ).fetchall()
    connection.close()
    return found


def assert_rows_are_those_of_the_journals(home: Path, run_id: str) -> None:
    """Each once, none missing."""
    written = []
    for attempt in RunDir(home / "runs" / run_id).attempts():
        for entry, _ in read_journal(attempt.journal, 0, 1 << 26):
            if isinstance(entry, Event) and entry.kind is Kind.METRICS:
                written.append((attempt.number, entry.data["step"]))
    assert row_of(home / "cognate.db", run_id) == written


def assert_attempts_follow_each_other(found: Service, run_id: str) -> None:
    numbers = [attempt["number"] for attempt in found.client.get(f"/v1/runs/{run_id}/attempts").json()["data"]]
    assert numbers == list(range(1, len(numbers) + 1))
    *older, _ = [*RunDir(found.home / "runs" / run_id).attempts(), None]
    assert all(lease_is_free(attempt) for attempt in older[:-1] if attempt), "two attempts of one run at work"


# --- the server -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    run_id: str
    command: str
    version: int


class Caller(threading.Thread):
    """Asks for one thing after the other until nobody answers; remembers what was answered, and what may have been heard."""

    def __init__(self, port: int, draw: random.Random, run_ids: list[str], key: str) -> None:
        super().__init__(daemon=True)
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self._draw, self._run_ids = draw, list(run_ids)
        self.key = key
        self.launched: str | None = None
        self.answers: list[Answer] = []
        self.unsure: str | None = None

    def run(self) -> None:
        with self._client:
            try:
                self.launched = launch_once(self._client, self.key)
                self._run_ids.append(self.launched)
                while True:
                    run_id, command = self._draw.choice(self._run_ids), self._draw.choice([*AFTER, "checkpoint"])
                    self.unsure = run_id
                    answer = self._client.post(f"/v1/runs/{run_id}/{command}")
                    self.unsure = None
                    if answer.is_success:
                        self.answers.append(Answer(run_id, command, answer.json()["version"]))
                    else:
                        assert answer.status_code == 409, answer.text
                    time.sleep(self._draw.uniform(0, 0.01))
            except httpx.TransportError:
                return


def launch_once(client: httpx.Client, key: str) -> str:
    body = {"preset": "quickstart", "config": {"training": {"max_steps": 40}}}
    answer = client.post("/v1/runs", json=body, headers={"Idempotency-Key": key})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


def test_a_killed_server_keeps_its_word(tmp_path: Path) -> None:
    """Every command answered is in effect after the restart; each launch made one run; no run is at work twice; a run that
    nobody asked anything of has one worker throughout."""
    draw = random.Random(5)
    answered = 0
    home = tmp_path / "home"
    with service(home, "--step-seconds", "0.01", slots=4) as found:
        bystander = launch(found.client, steps=1_000_000)
        wait_for(found.client, bystander, "running")
        worker = read_json(RunDir(home / "runs" / bystander).attempt(1).started)
        runs: dict[str, str] = {}
        open_runs: list[str] = []
        for number in range(times(100)):
            caller = Caller(found.port, draw, open_runs, f"key-{number}")
            caller.start()
            time.sleep(draw.uniform(0, 1.0))
            found.kill()
            caller.join(30)
            assert not caller.is_alive()
            found.start()
            runs[caller.key] = launch_once(found.client, caller.key)  # again, for who knows whether it was heard
            assert caller.launched in (None, runs[caller.key])
            last: dict[str, Answer] = {answer.run_id: answer for answer in caller.answers}
            for answer in last.values():
                run = found.run(answer.run_id)
                assert run["version"] >= answer.version, answer
                if answer.command in AFTER and answer.run_id != caller.unsure:
                    assert run["state"] in AFTER[answer.command], (answer, run["state"])
            answered += len(caller.answers)
            open_runs = [run_id for run_id in runs.values() if found.run(run_id)["state"] not in FINAL][-6:]
            for run_id in open_runs:
                assert_attempts_follow_each_other(found, run_id)
            assert found.run(bystander)["attempt"] == 1
        listed = found.client.get("/v1/runs", params={"limit": 200}).json()["data"]
        assert {run["id"] for run in listed} == {bystander, *runs.values()}
        assert psutil.Process(worker["pid"]).is_running()
        found.client.post(f"/v1/runs/{bystander}/stop")
        for run_id in runs.values():
            if found.run(run_id)["state"] not in FINAL:
                found.client.post(f"/v1/runs/{run_id}/stop")
        for run_id in (bystander, *runs.values()):
            assert wait_for(found.client, run_id, *FINAL)["state"] != "failed"
            assert_attempts_follow_each_other(found, run_id)
            assert_rows_are_those_of_the_journals(home, run_id)
        steps = [step for _, step in row_of(home / "cognate.db", bystander)]
        assert steps == list(range(1, len(steps) + 1))
        until(lambda: not found.family())
    count("2 SIGKILL of the server", f"{times(100)} kills, {answered} commands answered, {len(runs)} launches, none lost or done twice")


# --- the shim, and everything -----------------------------------------------------------------------------------


@contextmanager
def at_work(home: Path, **settings: Any) -> Iterator[tuple[Service, str]]:
    """A service that does not resume by itself, and a long run."""
    with service(home, "--step-seconds", "0.01", auto_resume=0, **settings) as found:
        yield found, launch(found.client, steps=1_000_000)


def go_on(found: Service, run_id: str) -> None:
    """Resume what was lost; a run that was killed while it was queued is launched without being asked."""

    def look() -> dict[str, Any] | None:
        run = found.run(run_id)
        is_at_work = run["state"] == "running" and not lease_is_free(RunDir(found.home / "runs" / run_id).attempt(run["attempt"]))
        return run if run["state"] == "interrupted" or is_at_work else None

    run = until(look)
    if run["state"] == "interrupted":
        assert run["state_reason"] in ("worker_lost", "signal"), run["state_detail"]
        assert found.client.post(f"/v1/runs/{run_id}/resume").status_code == 202


def conclude(found: Service, run_id: str) -> None:
    """It goes on to a good end, and its rows are those that its workers wrote."""
    wait_for(found.client, run_id, "running")
    found.client.post(f"/v1/runs/{run_id}/stop")
    wait_for(found.client, run_id, "stopped")
    assert_attempts_follow_each_other(found, run_id)
    assert_rows_are_those_of_the_journals(found.home, run_id)
    until(lambda: not found.family())


def test_a_killed_shim_leaves_nothing_running(tmp_path: Path) -> None:
    draw, slowest = random.Random(6), 0.0
    with at_work(tmp_path / "home") as (found, run_id):
        for number in range(1, times(50) + 1):
            attempt = RunDir(found.home / "runs" / run_id).attempt(number)
            shim = until(lambda: next((process for process in found.family() if is_shim(process)), None))
            time.sleep(draw.uniform(0, 1.0))
            killed_at = time.monotonic()
            shim.kill()
            until(partial(lease_is_free, attempt), 5)
            slowest = max(slowest, time.monotonic() - killed_at)
            go_on(found, run_id)
        conclude(found, run_id)
    count("3 SIGKILL of the shim", f"{times(50)} kills, each worker gone within {slowest:.2f} s, each run resumed, rows exactly once")


def is_shim(process: psutil.Process) -> bool:
    try:
        return any(word.endswith("shim.py") for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_all(processes: list[psutil.Process]) -> list[psutil.Process]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return processes


def test_everything_killed_at_once_is_made_good(tmp_path: Path) -> None:
    draw = random.Random(7)
    with at_work(tmp_path / "home") as (found, run_id):
        for _ in range(times(50)):
            time.sleep(draw.uniform(0, 1.0))
            assert found.process is not None
            assert found.process.pid is not None
            victims = [psutil.Process(found.process.pid), *found.family()]
            draw.shuffle(victims)
            kill_all(victims)
            found.kill()
            until(lambda: not kill_all(found.family()), 20)  # a shim that the server was just starting is one of them
            found.start()
            go_on(found, run_id)
        conclude(found, run_id)
    count("3 SIGKILL of everything at once", f"{times(50)} kills, nothing left running, each run resumed, rows exactly once")


# --- SIGTERM ------------------------------------------------------------------------------------------------------


def test_sigterm_saves_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """What `docker stop` sends. Each start begins where the one before was told to end."""
    draw = random.Random(8)
    with service(tmp_path / "home", "--step-seconds", "0.01", shutdown_grace_s=10.0) as found:
        run_id = launch(found.client, steps=1_000_000)
        run = RunDir(found.home / "runs" / run_id)
        for _ in range(times(50)):
            time.sleep(draw.uniform(0, 1.0))
            began = time.monotonic()
            assert found.terminate() in (0, -signal.SIGTERM)
            assert time.monotonic() - began < 15
            assert not found.family()
            assert run.complete_checkpoints()
            found.start()
            until(lambda: found.run(run_id)["state"] in ("starting", "running"))
        wait_for(found.client, run_id, "running")
        found.client.post(f"/v1/runs/{run_id}/stop")
        wait_for(found.client, run_id, "stopped")
        rows = row_of(found.home / "cognate.db", run_id)
        assert [step for _, step in rows] == list(range(1, len(rows) + 1))  # no step was done twice
        assert_rows_are_those_of_the_journals(found.home, run_id)
        reasons = [event["data"]["reason"] for event in found.client.get(f"/v1/runs/{run_id}/events?kind=state&limit=500").json()["data"]]
        assert "shutdown" in reasons
        assert not {"signal", "worker_lost"} & {*reasons}
    count("10 SIGTERM of the service", f"{times(50)} times saved and gone on, no step done twice")
