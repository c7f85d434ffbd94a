"""Evaluations through the service: asked for, joined, noted on the run, and begun by themselves when a run is completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cognate.rundir import RunDir, write_json
from tests.service import launch, serving, until, wait_for


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def evaluations(client: TestClient, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/runs/{run_id}/evaluations").json()["data"]
    return found


def test_an_evaluation_is_a_job_of_the_newest_checkpoint_and_an_event_of_the_run(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path, data_dir=data_dir) as client:
        run_id = launch(client, steps=30)
        wait_for(client, run_id, "completed")
        newest = client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"][-1]
        answer = client.post(
            f"/v1/runs/{run_id}/evaluations", json={"datasets": ["svamp", "gsm8k", "svamp"], "limit": 4, "calculator": True, "vote": 5}
        )
        assert answer.status_code == 202
        job = until(lambda: (job := client.get(answer.headers["Location"]).json())["ended_at"] and job)
        assert (job["state"], job["kind"], job["subject"]) == ("completed", "evaluation", run_id)
        assert (job["spec"]["checkpoint_id"], job["spec"]["step"]) == (newest["id"], newest["step"])
        asked = {"datasets": ["gsm8k", "svamp"], "limit": 4, "overlap": True, "calculator": True, "vote": 5}
        assert asked.items() <= job["spec"].items()
        assert [found["id"] for found in evaluations(client, run_id)] == [job["id"]]
        (event,) = client.get(f"/v1/runs/{run_id}/events", params={"kind": "evaluation"}).json()["data"]
        assert (event["step"], event["data"]["job_id"]) == (newest["step"], job["id"])
        assert event["data"]["figures"] == {"svamp": {"value": 0.25, "n": 4, "low": 0.046, "high": 0.699}}


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path, data_dir: Path) -> None:
    with serving(tmp_path / "without") as client:
        run_id = launch(client, steps=10)
        wait_for(client, run_id, "completed")
        assert client.post(f"/v1/runs/{run_id}/evaluations").json()["type"] == "/v1/problems/data_missing"
    with serving(tmp_path / "with", data_dir=data_dir) as client:
        run_id = launch(client, steps=10)
        wait_for(client, run_id, "completed")
        url = f"/v1/runs/{run_id}/evaluations"
        assert client.post(url, json={"datasets": ["gsm9k"]}).status_code == 422
        assert client.post(url, json={"vote": 1}).status_code == 422
        assert client.post(url, json={"checkpoint_id": "ckpt_00000000-0000-0000-0000-000000000000"}).status_code == 404
        assert client.post("/v1/runs/run_00000000-0000-0000-0000-000000000000/evaluations").status_code == 404
        assert evaluations(client, run_id) == []


@pytest.mark.parametrize(
    ("at_end", "gpus", "limit"), [("auto", [], 100), ("auto", ["GPU-a"], None), ("sample", ["GPU-a"], 100), ("full", [], None)]
)
def test_a_completed_run_is_evaluated_at_its_best(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, at_end: str, gpus: list[str], limit: int | None
) -> None:
    monkeypatch.setattr("app.executors.local.usable_gpus", lambda: gpus)
    monkeypatch.setattr("app.executors.local.holds_memory", lambda *_: False)
    with serving(tmp_path, "--step-seconds", "0.02", data_dir=data_dir) as client:
        run_id = best_at_the_start(client, tmp_path, {"evaluation": {"at_end": at_end}})
        wait_for(client, run_id, "completed")
        (job,) = evaluations(client, run_id)
        best = RunDir(tmp_path / "runs" / run_id).best()
        assert best is not None
        assert (job["spec"]["step"], job["spec"]["limit"]) == (best[0], limit)
        assert job["spec"]["needs_gpu"] is (limit is None and gpus != [])
        assert best[0] < client.get(f"/v1/runs/{run_id}").json()["progress"]["step"]


@pytest.mark.parametrize("config", [{"evaluation": {"at_end": "off"}}, {"data": {"source": "synthetic"}, "evaluation": {"at_end": "full"}}])
def test_a_completed_run_is_not_evaluated_where_it_should_not(tmp_path: Path, data_dir: Path, config: dict[str, Any]) -> None:
    with serving(tmp_path, "--step-seconds", "0.02", data_dir=data_dir) as client:
        run_id = best_at_the_start(client, tmp_path, config)
        wait_for(client, run_id, "completed")
        assert evaluations(client, run_id) == []


def best_at_the_start(client: TestClient, home: Path, config: dict[str, Any]) -> str:
    """A run whose best checkpoint is not its newest."""
    run_id: str = client.post("/v1/runs", json={"preset": "quickstart", "config": {**config, "training": {"max_steps": 200}}}).json()["id"]
    wait_for(client, run_id, "running")
    assert client.post(f"/v1/runs/{run_id}/checkpoint").status_code == 202
    saved = until(lambda: client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"])
    write_json(RunDir(home / "runs" / run_id).checkpoints / "best.json", {"step": saved[0]["step"], "val_loss": 1.0})
    return run_id
