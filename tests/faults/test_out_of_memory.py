"""Out of memory: the real model in a real worker goes on with half the rows at once, to the result it would have come to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.executors.local import LocalExecutor
from app.main import create_app
from app.settings import Settings
from cognate.rundir import Limits, RunDir, read_limits
from tests.faults.memory_group import memory_group
from tests.service import URL, wait_for
from tests.training.runs import TINY, attempt_at, new_run, rows

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import write_folder

pytestmark = pytest.mark.timeout(600)
HUNGRY = Path(__file__).with_name("hungry_worker.py")
TRAINING = {**TINY["training"], "max_steps": 6, "checkpoint_every_steps": 2}


@contextmanager
def serving(home: Path, most: int, data_dir: Path | None = None, *where: str) -> Iterator[TestClient]:
    worker = [sys.executable, str(HUNGRY), str(most), *where]
    app = create_app(Settings(home=home, auto_resume=0, data_dir=data_dir), LocalExecutor(data_dir, home / "cache", 1, worker))
    with TestClient(app, base_url=URL) as client:
        yield client


def trained(client: TestClient, batch_size: int = 4, choice_weight: float = 0.0, **changes: Any) -> dict[str, Any]:
    # Which tokens early recursions are scored on is drawn for each part of a batch; here it is all of them.
    training = {**TRAINING, "batch_size": batch_size, "choice_weight": choice_weight}
    config = {**TINY, "model": {**TINY["model"], "supervised_fraction": 1.0}, "training": training, **changes}
    run_id = client.post("/v1/runs", json={"preset": "quickstart", "config": config}).json()["id"]
    return wait_for(client, run_id, "completed", "failed", timeout_s=500)


def told(client: TestClient, run: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in client.get(f"/v1/runs/{run['id']}/events?limit=500&kind={kind}").json()["data"]]


def losses(client: TestClient, run: dict[str, Any]) -> list[float]:
    return list(client.get(f"/v1/runs/{run['id']}/metrics?keys=loss").json()["columns"]["loss"])


def test_it_goes_on_with_half_the_rows_to_the_same_result(tmp_path: Path) -> None:
    with serving(tmp_path, most=2) as client:
        run = trained(client)
        directory = RunDir(tmp_path / "runs" / run["id"])
        assert (run["state"], run["attempt"], run["rows_at_most"]) == ("completed", 2, 2)
        assert [read_limits(directory.attempt(number)) for number in (1, 2)] == [Limits(None), Limits(2)]
        states = [(event["state"], event["reason"]) for event in told(client, run, "state")]
        life = [("starting", None), ("running", None)]
        assert states == [("queued", None), *life, ("failed", "oom_cuda"), ("queued", "auto_resume"), *life, ("completed", None)]
        (alert,) = told(client, run, "alert")
        assert alert["kind"] == "out_of_memory"
        assert (alert["evidence"]["rows_at_once"], alert["evidence"]["rows_from_now_on"]) == (4, 2)
        assert [cleared["kind"] for cleared in told(client, run, "alert_cleared")] == ["out_of_memory"]
        assert run["alerts"] == []
        assert any("2 parts of 2 rows" in warning["message"] for warning in told(client, run, "warning"))
        halved = losses(client, run)
    whole = new_run(tmp_path / "whole", directory.config())
    attempt_at(whole, cache=tmp_path / "cache")
    assert halved[1:] == pytest.approx([event.data["values"]["loss"] for event in rows(whole)[1:]], rel=1e-4)
    assert len(halved) == 7


def test_what_the_kernel_kills_for_memory_goes_on_with_half_the_rows_too(tmp_path: Path) -> None:
    """It gets no chance to say a word; the kernel's count of such kills is what tells it from any other SIGKILL."""
    with memory_group(2 << 30) as group, serving(tmp_path, 2, None, str(group)) as client:
        run = trained(client)
        assert (run["state"], run["attempt"], run["rows_at_most"]) == ("completed", 2, 2)
        assert ("failed", "oom_host") in [(event["state"], event["reason"]) for event in told(client, run, "state")]
        assert [alert["kind"] for alert in told(client, run, "alert")] == ["out_of_memory"]


def test_the_candidates_of_a_problem_go_through_in_parts_too(tmp_path: Path) -> None:
    """Problems of two candidates, of which one fits: without parts, no number of rows would do."""
    folder = write_folder(tmp_path / "data", ["gsm8k", "piqa"], n_train=40)
    with serving(tmp_path / "home", most=1, data_dir=folder) as client:
        run = trained(
            client,
            batch_size=2,
            data={"source": "real", "validation_batches": 1},
            choice_weight=0.5,
            evaluation={"epoch_items": 0, "samples": 0, "at_end": "off"},
        )
        assert (run["state"], run["attempt"], run["rows_at_most"], run["alerts"]) == ("completed", 2, 1, [])
        assert len(losses(client, run)) == 7


def test_a_single_row_that_does_not_fit_leaves_it_failed_and_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, most=0) as client:
        run = trained(client, batch_size=2)
        assert (run["state"], run["state_reason"], run["attempt"]) == ("failed", "oom_cuda", 2)
        (alert,) = run["alerts"]
        assert (alert["evidence"]["rows_at_once"], alert["evidence"]["rows_from_now_on"]) == (1, None)
        assert "row by row" in alert["message"]


def test_a_run_that_is_not_to_be_halved_stays_failed(tmp_path: Path) -> None:
    with serving(tmp_path, most=1) as client:
        run = trained(client, health={"on_out_of_memory": "fail"})
        assert (run["state"], run["attempt"], run["rows_at_most"]) == ("failed", 1, None)
        assert [alert["kind"] for alert in run["alerts"]] == ["out_of_memory"]
