"""The wall clock is set forward and back by up to a day, in the server and in the worker: nothing that matters goes by it."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.executors.local import LocalExecutor
from app.main import create_app
from app.settings import Settings
from app.store import runs
from tests.faults.processes import count, times
from tests.faults.test_service_killed import assert_rows_are_those_of_the_journals
from tests.service import URL, launch, serving, steps_of, until, wait_for

pytestmark = pytest.mark.timeout(3600)
ROOT = Path(__file__).parents[2]
IN_ORDER = ["started", "plan", "phase", "paused", "started", "plan", "phase", "stopped"]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> random.Random:
    """Every look at the clock of this process may find it set anew."""
    true_time, draw, offset = time.time, random.Random(14), [0.0]

    def jumping() -> float:
        if draw.random() < 0.2:
            offset[0] = draw.uniform(-86_400, 86_400)
        return true_time() + offset[0]

    monkeypatch.setattr(time, "time", jumping)
    return draw


@pytest.mark.usefixtures("set_clock")
def test_deadlines_and_order_do_not_go_by_the_wall_clock(tmp_path: Path) -> None:
    """A pause with a deadline is neither late nor early, silence is no longer than it is, and events and rows keep their order."""
    worker = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import tests.faults.jumping_worker"]
    settings = Settings(home=tmp_path, auto_resume=0, stall_after_s=20)
    app = create_app(settings, LocalExecutor(None, tmp_path / "cache", 1, [*worker, "--step-seconds", "0.005"]))
    with TestClient(app, base_url=URL) as client:
        for _ in range(times(50)):
            run_id = launch(client, steps=1_000_000)
            until(lambda run_id=run_id: len(steps_of(client, run_id)) > 10)  # type: ignore[misc]
            client.post(f"/v1/runs/{run_id}/pause", json={"deadline_s": 20})
            assert wait_for(client, run_id, "paused")["state_reason"] == "user_pause"
            paused_at = len(steps_of(client, run_id))
            client.post(f"/v1/runs/{run_id}/resume")
            until(lambda run_id=run_id, n=paused_at: len(steps_of(client, run_id)) > n + 10)  # type: ignore[misc]
            client.post(f"/v1/runs/{run_id}/stop", json={"grace_s": 20})
            assert wait_for(client, run_id, "stopped")["state_reason"] == "user_stop"
            told = client.get(f"/v1/runs/{run_id}/events", params={"limit": 500}).json()["data"]
            assert [event["seq"] for event in told] == sorted(event["seq"] for event in told)
            kinds = [event["kind"] for event in told]
            assert [kind for kind in kinds if kind in IN_ORDER] == IN_ORDER
            assert "alert" not in kinds
            steps = steps_of(client, run_id, "all")
            assert steps == list(range(1, len(steps) + 1))
            assert_rows_are_those_of_the_journals(tmp_path, run_id)
    count("8 clock jumps", f"{times(50)} runs paused, resumed and stopped on clocks that jump by up to a day, in order and in time")


@pytest.mark.usefixtures("set_clock")
def test_the_queue_keeps_the_order_in_which_runs_came(tmp_path: Path) -> None:
    """Who paused and resumed comes last."""
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        came = [launch(client) for _ in range(12)]
        client.post(f"/v1/runs/{came[0]}/pause")
        client.post(f"/v1/runs/{came[0]}/resume")
        assert [run["id"] for run in client.get("/v1/queue").json()["data"]] == [*came[1:], came[0]]


def test_a_key_outlives_a_clock_that_jumps_by_years(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is repeated a minute later takes effect once, whatever the clock says of that minute; old keys go all the same."""
    true_time = time.time
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        first = launch_as(client, "first")
        for years in (10, -10):
            monkeypatch.setattr(time, "time", lambda years=years: true_time() + years * 31_536_000)
            launch_as(client, f"jump {years}".replace(" ", "-"))
            assert launch_as(client, "first") == first
        monkeypatch.setattr(runs, "KEYS_KEPT", 2)
        launch_as(client, "one")
        launch_as(client, "two")
        assert launch_as(client, "first") != first


def launch_as(client: TestClient, key: str) -> str:
    body = {"preset": "quickstart", "config": {"training": {"max_steps": 2}}}
    return str(client.post("/v1/runs", json=body, headers={"Idempotency-Key": key}).json()["id"])


@pytest.mark.usefixtures("set_clock")
def test_a_grace_is_as_long_as_it_was_said_to_be(tmp_path: Path) -> None:
    worker = [sys.executable, str(ROOT / "tests" / "fake_worker.py"), "--fault", "hang@3"]
    app = create_app(Settings(home=tmp_path, auto_resume=0), LocalExecutor(None, tmp_path / "cache", 1, worker))
    with TestClient(app, base_url=URL) as client:
        for _ in range(times(20)):
            run_id = launch(client)
            until(lambda run_id=run_id: len(steps_of(client, run_id)) == 3)  # type: ignore[misc]
            began = time.monotonic()
            client.post(f"/v1/runs/{run_id}/stop", json={"grace_s": 1.0})
            wait_for(client, run_id, "stopped")
            assert 1.0 < time.monotonic() - began < 10
    count("8 clock jumps, a grace", f"{times(20)} workers that hang, each ended when its second was over")
