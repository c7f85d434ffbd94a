"""alerts.py: what journals say becomes alerts on runs, once each, whatever is restarted; and what the supervisor sees itself."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.services import detectors, journal, supervisor
from app.services.alerts import Alerts
from app.store import metrics, runs
from app.store.engine import Store, migrate
from app.store.tables import Attempt, Run
from cognate.config import resolve
from cognate.events import Kind
from cognate.rundir import AttemptDir, Journal, RunDir, read_json
from tests.fake_nvml import FakeGpu, fake_gpu
from tests.service import launch, serving, until, wait_for


class PowerCutError(BaseException):
    pass


class Watched:
    """A run whose journal is taken in by hand."""

    def __init__(self, home: Path, **more: Any) -> None:
        migrate(home / "cognate.db")
        self.store = Store(home / "cognate.db")
        self.alerts = Alerts()
        self.run_dir = RunDir(home / "runs" / "run_1")
        config = resolve("quickstart")
        self.run_dir.create(config)
        row = {
            "id": "run_1",
            "name": "n",
            "preset": "quickstart",
            "config": config.model_dump(mode="json"),
            "tags": [],
            "state": "starting",
        }
        with self.store.write() as write:
            write.session.add(Run(**row, created_at=0, updated_at=0, queued_at=0, **more))
        self.begin()

    def begin(self, resumed_from: int | None = None) -> None:
        """A new attempt."""
        with self.store.write() as write:
            run = runs.get(write.session, "run_1")
            run.attempt += 1
            write.session.add(Attempt(run_id="run_1", number=run.attempt, device="cpu", launched_at=0))
        attempt = self.attempt()
        attempt.create()
        self.lines = Journal(attempt)
        self.lines.append(Kind.STARTED, resumed_from_step=resumed_from)

    def attempt(self) -> AttemptDir:
        with self.store.read() as session:
            return self.run_dir.attempt(runs.get(session, "run_1").attempt)

    def rows(self, steps: range, loss: float) -> None:
        for step in steps:
            self.lines.append(Kind.METRICS, step=step, epoch=step / 1000, values={"loss_ce": loss, "loss": loss}, progress={"step": step})

    def take(self, *, cut: bool = False) -> None:
        with self.store.write() as write:
            run = runs.get(write.session, "run_1")
            attempt = runs.attempt(write.session, "run_1", run.attempt)
            self.alerts.prepare(write.session, run, attempt)
            while journal.ingest(write, run, attempt, self.attempt(), partial(self.alerts.take, write, run, attempt)):
                pass
            if cut:
                raise PowerCutError

    def told(self) -> list[tuple[str, str, int | None]]:
        """(event, ailment, step)"""
        with self.store.read() as session:
            found = runs.events(session, "run_1", 0, 1000)
            return [(event.kind, event.data["kind"], event.step) for event in found if event.kind.startswith("alert")]

    def active(self) -> list[str]:
        with self.store.read() as session:
            return [alert["kind"] for alert in runs.get(session, "run_1").alerts]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    yield made
    made.store.close()


def test_an_alert_is_kept_on_the_run_until_it_is_over(watched: Watched) -> None:
    watched.rows(range(1, 50), 3.0)
    watched.rows(range(50, 60), 9.0)
    watched.take()
    assert watched.active() == ["explosion"]
    with watched.store.read() as session:
        (alert,) = runs.get(session, "run_1").alerts
    assert alert["severity"] == "critical"
    assert alert["evidence"] == {"step": 50, "loss": 9.0, "median": 3.0, "deviation": 0.0}
    assert "gradient_clip" in alert["remedy"]
    watched.rows(range(60, 80), 3.0)
    watched.take()
    assert watched.active() == []
    assert watched.told() == [("alert", "explosion", 50), ("alert_cleared", "explosion", 69)]


def test_a_server_that_starts_again_knows_what_was_told_and_what_came_before(watched: Watched) -> None:
    watched.rows(range(1, 50), 3.0)
    watched.rows(range(50, 55), 9.0)
    watched.take()
    watched.alerts = Alerts()
    watched.rows(range(55, 60), 9.0)
    watched.take()
    assert watched.told() == [("alert", "explosion", 50)]
    watched.alerts = Alerts()
    watched.rows(range(60, 80), 3.0)
    watched.take()
    watched.alerts = Alerts()
    watched.rows(range(80, 81), 9.0)
    watched.take()
    assert watched.told() == [("alert", "explosion", 50), ("alert_cleared", "explosion", 69), ("alert", "explosion", 80)]


def test_what_was_not_kept_was_not_told(watched: Watched) -> None:
    watched.rows(range(1, 50), 3.0)
    watched.rows(range(50, 52), 9.0)
    with pytest.raises(PowerCutError):
        watched.take(cut=True)
    watched.alerts.forget("run_1")
    watched.take()
    assert watched.told() == [("alert", "explosion", 50)]


def test_an_attempt_that_begins_before_the_spike_does_not_count_it(watched: Watched) -> None:
    watched.rows(range(1, 50), 3.0)
    watched.take()
    watched.rows(range(50, 100), 1.0)
    watched.take()
    watched.begin(resumed_from=49)
    watched.rows(range(50, 60), 3.2)  # three times what it was at these steps before the resume
    watched.take()
    assert watched.told() == []


def test_a_fork_is_compared_with_an_untrained_model_not_with_its_own_beginning(tmp_path: Path) -> None:
    for number, (loss, ailments) in enumerate([(2.0, []), (6.3, ["loss_not_falling"])]):
        home = tmp_path / str(number)
        home.mkdir()
        watched = Watched(home, forked_from={"run_id": "run_0", "checkpoint_id": "c", "step": 500})
        watched.lines.append(Kind.PLAN, total_steps=1000, steps_per_epoch=[1000], total_params=1)
        watched.rows(range(501, 520), loss)
        watched.take()
        assert watched.active() == ailments
        watched.store.close()


@pytest.mark.parametrize(("steps", "fill_ratio"), [("many", 0.5), ([1000], 1e308)])
def test_a_journal_that_is_odd_is_kept_and_not_judged(watched: Watched, steps: Any, fill_ratio: float) -> None:
    watched.lines.append(Kind.PLAN, steps_per_epoch=steps, total_steps=1, total_params=1, fill_ratio=fill_ratio)
    watched.rows(range(1, 50), 3.0)
    watched.rows(range(50, 60), math.nan)
    watched.take()
    with watched.store.read() as session:
        (warning,) = [event.data["message"] for event in runs.events(session, "run_1", 0, 1000) if event.kind == "warning"]
        assert "not watched over any more" in warning
        assert len(metrics.columns(session, "run_1", ["loss"])["step"]) == 59
    assert watched.told() == []
    watched.begin()
    watched.rows(range(1, 3), math.nan)
    watched.take()


def test_the_service_shows_alerts_and_counts_them(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "nan@9") as client:
        run = wait_for(client, launch(client), "failed")
        assert [alert["kind"] for alert in run["alerts"]] == ["nonfinite"]
        (listed,) = client.get("/v1/runs").json()["data"]
        assert (run["alert_count"], listed["alert_count"]) == (1, 1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """One that is busy an eighth of the time, and looked at all the time."""
    monkeypatch.setattr(supervisor, "GPU_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(detectors, "GPU_LOOKS", 3)
    return fake_gpu(monkeypatch, load=12)


def test_a_gpu_that_idles_is_told_until_it_is_busy(tmp_path: Path, gpu: FakeGpu) -> None:
    with serving(tmp_path, "--step-seconds", "0.02") as client:
        run_id = launch(client, steps=1_000_000)
        (alert,) = until(lambda: client.get(f"/v1/runs/{run_id}").json()["alerts"])
        assert (alert["kind"], alert["evidence"]["utilisation"]) == ("low_gpu_utilisation", pytest.approx(0.12))
        (sample,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith("cognate_run_alerts{")]
        assert run_id in sample
        assert sample.endswith(" 1.0")
        gpu.load = 95
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["alerts"] == [])
        (cleared,) = client.get(f"/v1/runs/{run_id}/events?kind=alert_cleared").json()["data"]
        assert "the GPU was busy" in cleared["data"]["message"]


def test_a_gpu_that_idles_is_forgotten_with_its_worker(tmp_path: Path, gpu: FakeGpu) -> None:
    with serving(tmp_path, "--step-seconds", "0.02") as client:
        run_id = launch(client, steps=1_000_000)
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["alerts"])
        client.post(f"/v1/runs/{run_id}/stop")
        assert wait_for(client, run_id, "stopped")["alerts"] == []
        cleared = client.get(f"/v1/runs/{run_id}/events?kind=alert_cleared").json()["data"]
        assert [event["data"]["message"] for event in cleared] == ["the worker ended"]


def test_a_gpu_whose_load_nobody_knows_is_not_judged(tmp_path: Path, gpu: FakeGpu) -> None:
    gpu.load = None
    with serving(tmp_path, "--step-seconds", "0.005") as client:
        run_id = launch(client, steps=100)
        assert wait_for(client, run_id, "completed")["alerts"] == []
        (device, _) = client.get("/v1/devices").json()["data"]
        assert (device["slot"], device["memory_total_bytes"], device["utilisation_percent"]) == ("cuda:0", 24 << 30, None)
        assert client.get(f"/v1/runs/{run_id}/events?kind=alert").json()["data"] == []


def test_a_stall_is_told_once_though_the_server_starts_anew(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.01", stall_after_s=0.5) as client:
        run_id = launch(client, steps=1_000_000)
        wait_for(client, run_id, "running")
        attempt = RunDir(tmp_path / "runs" / run_id).attempt(1)
        pid = read_json(attempt.started)["pid"]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["alerts"])
        timers = client.app.state.parts.supervisor._timers  # type: ignore[attr-defined]
        timers.forget(run_id)  # as a new server has none
        until(lambda: timers.is_done(run_id, "stall"))
        os.kill(pid, signal.SIGCONT)
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["alerts"] == [])
        events = client.get(f"/v1/runs/{run_id}/events?limit=500").json()["data"]
        told = [event["kind"] for event in events if event["kind"].startswith("alert")]
        assert told[::2] == ["alert"] * (len(told) // 2)  # one, unless a busy machine kept the worker silent too
        assert told[1::2] == ["alert_cleared"] * (len(told) // 2)


def test_what_a_specialist_is_expected_to_reach_comes_with_its_plan(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        body = {"preset": "reasoning", "config": {"data": {"source": "synthetic"}, "training": {"max_steps": 5}}}
        run = wait_for(client, client.post("/v1/runs", json=body).json()["id"], "completed")
        assert run["expected_loss"] == [{"epoch": 1, "step": 5, "low": 8.0, "high": 10.0}]
        assert wait_for(client, launch(client, steps=5), "completed")["expected_loss"] == []
