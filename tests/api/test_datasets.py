"""Datasets through the service: counted by a job when the files change, fetched by another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from app.executors.local import JOB, LocalExecutor
from app.main import create_app
from app.settings import Settings
from cognate.config import DatasetName
from cognate.data.hub import HUB
from cognate.rundir import write_json
from tests.data.data_folders import row, write_folder, write_split
from tests.service import FAKE_JOB, FAKE_WORKER, URL, until


@contextmanager
def serving(home: Path, data_dir: Path | None, job: tuple[str, ...] = JOB) -> Iterator[TestClient]:
    executor = LocalExecutor(data_dir, home / "cache", 1, [sys.executable, str(FAKE_WORKER)], job=job)
    with TestClient(create_app(Settings(home=home, data_dir=data_dir), executor), base_url=URL) as client:
        yield client


def until_not_counting(client: TestClient) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        answer: dict[str, Any] = client.get("/v1/datasets").json()
        return answer if answer["state"] != "counting" else None

    return until(look, 60)


def test_datasets_are_counted_and_counted_again_when_they_change(tmp_path: Path) -> None:
    data_dir = write_folder(tmp_path / "data", ["boolq", "gsm8k"])
    with serving(tmp_path / "home", data_dir) as client:
        first = client.get("/v1/datasets").json()
        assert (first["state"], first["counted_at"], first["data"]) == ("counting", None, [])
        assert client.get("/v1/datasets").json()["job_id"] == first["job_id"]
        counted = until_not_counting(client)
        assert (counted["state"], counted["job_id"]) == ("ready", first["job_id"])
        rows = {each["name"]: each for each in counted["data"]}
        assert list(rows) == list(get_args(DatasetName))
        assert [name for name, each in rows.items() if each["present"]] == ["gsm8k", "boolq"]
        assert (rows["gsm8k"]["origin"], rows["gsm8k"]["train"], rows["gsm8k"]["test"], rows["gsm8k"]["samples"]) == ("local", 30, 4, 30)
        assert rows["gsm8k"]["partial"] == [
            {"split": "train", "rows": 30, "hub_rows": 7473},
            {"split": "test", "rows": 4, "hub_rows": 1319},
        ]
        assert rows["drop"]["missing_files"] == ["train.parquet", "validation.parquet", "validation_rest.parquet"]
        assert counted["stage_samples"]["all"] == {"1": 30, "2": 60, "3": 60}

        (data_dir / "gsm8k" / "test.parquet").unlink()
        again = client.get("/v1/datasets").json()
        assert (again["state"], again["counted_at"], again["data"]) == ("counting", counted["counted_at"], counted["data"])
        assert again["job_id"] != first["job_id"]
        assert [each["name"] for each in until_not_counting(client)["data"] if each["present"]] == ["boolq"]

        write_split(data_dir, "boolq", "train", [row("boolq", number) for number in range(31)])
        assert [each["train"] for each in until_not_counting(client)["data"] if each["present"]] == [31]


def test_what_is_fetched_is_seen(tmp_path: Path) -> None:
    with serving(tmp_path, None) as client:
        assert not any(each["present"] for each in until_not_counting(client)["data"])
        write_folder(tmp_path / "cache" / "datasets", ["svamp"])
        write_json(tmp_path / "cache" / "datasets" / "svamp" / "manifest.json", {"commit": "c" * 40})
        found = next(each for each in until_not_counting(client)["data"] if each["name"] == "svamp")
        assert (found["present"], found["origin"], found["commit"], found["missing_files"]) == (True, "fetched", "c" * 40, [])


def test_a_count_that_fails_says_why(tmp_path: Path) -> None:
    with serving(tmp_path, None, (sys.executable, "-c", "raise SystemExit(3)")) as client:
        answer = until_not_counting(client)
        assert (answer["state"], answer["detail"]) == ("failed", "its process left with code 3 and no result")
        assert client.get("/v1/datasets").json()["job_id"] == answer["job_id"]


def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


def switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")


@pytest.mark.parametrize("environment", [unset, switched_off])
def test_a_fetch_without_a_network_fails_as_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Its process may use the network, unlike those of runs: what it says of the hub it has tried."""
    environment(monkeypatch)
    with serving(tmp_path, None) as client:
        answer = client.post("/v1/datasets/gsm8k/fetch")
        assert answer.status_code == 202
        assert client.post("/v1/datasets/gsm8k/fetch").status_code == 200
        job = until(lambda: (job := client.get(answer.headers["Location"]).json())["ended_at"] and job, 60)
        assert (job["kind"], job["subject"], job["spec"], job["state"]) == ("fetch", "gsm8k", {"name": "gsm8k"}, "failed")
        assert job["reason"] == "offline"
        assert "the hub cannot be reached" in job["detail"]


def test_a_machine_kept_offline_refuses_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serving(tmp_path, None, (sys.executable, str(FAKE_JOB))) as client:
        answer = client.post("/v1/datasets/gsm8k/fetch")
        assert (answer.status_code, answer.json()["type"]) == (409, "/v1/problems/offline")
        assert client.get("/v1/jobs").json()["data"] == []


def test_a_machine_kept_offline_looks_into_the_hugging_face_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is one; what it does not hold is a job that fails as offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "hf" / "datasets" / "google___boolq" / "default" / "0.0.0" / ("d" * 40)).mkdir(parents=True)
    with serving(tmp_path, None) as client:
        answer = client.post("/v1/datasets/gsm8k/fetch")
        assert answer.status_code == 202
        job = until(lambda: (job := client.get(answer.headers["Location"]).json())["ended_at"] and job, 60)
        assert (job["state"], job["reason"]) == ("failed", "offline")
        assert f"openai/gsm8k at {HUB['gsm8k'].revision} is not in the Hugging Face cache" in job["detail"]


def test_only_the_fourteen_can_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unset(monkeypatch)
    with serving(tmp_path, None, (sys.executable, str(FAKE_JOB))) as client:
        for name in ("gsm9k", "extra", "..%2fgsm8k", "GSM8K"):
            assert client.post(f"/v1/datasets/{name}/fetch").status_code in (404, 422)
        assert client.get("/v1/jobs").json()["data"] == []
