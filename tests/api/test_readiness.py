"""GET and POST /v1/readiness: the newest measurement while it holds, else a new one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.services.readiness import KIND, STALE_S, fingerprint, is_current
from app.store.tables import Job
from cognate.config import MEASURED
from tests.report.example import EXAMPLE
from tests.service import launch, serving, until, wait_for

FOREIGN = {"Sec-Fetch-Site": "cross-site"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    (tmp_path / "data" / "gsm8k" / "train.parquet").write_bytes(b"rows")
    with serving(tmp_path / "home", "--step-seconds", "0.01", data_dir=tmp_path / "data") as client:
        yield client


def look(client: TestClient, preset: str = "reasoning", **headers: str) -> dict[str, Any]:
    answer = client.get("/v1/readiness", params={"preset": preset}, headers=headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def measured(client: TestClient, preset: str = "reasoning") -> dict[str, Any]:
    return until(lambda: (found := look(client, preset))["state"] == "measured" and found)  # type: ignore[return-value]


def count(client: TestClient) -> int:
    return len(client.get("/v1/jobs", params={"kind": KIND}).json()["data"])


def test_the_first_look_measures_and_the_next_ones_read(client: TestClient) -> None:
    first = look(client)
    assert (first["state"], first["verdict"], first["report"]) == ("measuring", None, None)
    assert first["job"]["id"].startswith("job_")
    assert first["live"]["devices"] == [{"slot": "cpu", "run_id": None, "job_id": None, **dict.fromkeys(_DEVICE)}]
    found = measured(client)
    assert (found["verdict"], found["is_current"], found["job"]) == (EXAMPLE["verdict"], True, None)
    assert found["report"] == EXAMPLE
    assert 0 <= found["age_s"] < 60
    assert found["live"]["disk_free_bytes"] > 0
    assert count(client) == 1


_DEVICE = ("rest", "name", "memory_total_bytes", "memory_used_bytes", "utilisation_percent")


def test_presets_are_measured_apart(client: TestClient) -> None:
    assert measured(client, "memory")["report"]["preset"] == "memory"
    assert measured(client, "speed")["report"]["preset"] == "speed"
    assert client.get("/v1/readiness", params={"preset": "nix"}).status_code == 422
    assert client.post("/v1/readiness", params={"preset": "nix"}).status_code == 422


def test_recipes_are_measured_apart(client: TestClient) -> None:
    measured(client)
    asked = {"preset": "reasoning", "recipe": "measured"}
    answer = client.get("/v1/readiness", params=asked).json()
    assert (answer["recipe"], answer["state"], answer["report"]) == ("measured", "measuring", None)
    assert answer["job"]["spec"]["config"]["optimizer"]["muon_lr"] == MEASURED["optimizer"]["muon_lr"]
    until(lambda: client.get("/v1/readiness", params=asked).json()["state"] == "measured")
    assert client.post("/v1/readiness", params=asked).status_code == 202
    assert look(client)["is_current"]
    for recipe, preset in (("measured", "quickstart"), ("nix", "reasoning")):
        assert client.get("/v1/readiness", params={"preset": preset, "recipe": recipe}).status_code == 422


def test_changed_data_are_measured_anew_and_the_old_report_is_told_as_such(client: TestClient, tmp_path: Path) -> None:
    measured(client)
    (tmp_path / "data" / "gsm8k" / "train.parquet").write_bytes(b"other rows")
    found = look(client)
    assert (found["state"], found["is_current"], found["verdict"]) == ("measuring", False, EXAMPLE["verdict"])
    measured(client)
    assert count(client) == 2


def test_measuring_can_be_asked_for_and_is_joined(client: TestClient) -> None:
    measured(client)
    asked = [client.post("/v1/readiness") for _ in range(2)]
    assert [answer.status_code for answer in asked] in ([202, 200], [202, 202])  # the second, unless the first was done by then
    assert asked[0].headers["Location"] == f"/v1/jobs/{asked[0].json()['id']}"
    until(lambda: client.get(asked[0].headers["Location"]).json()["state"] == "completed")
    assert measured(client)["is_current"]


def test_another_sites_page_sets_nothing_to_work(client: TestClient) -> None:
    assert look(client, **FOREIGN)["state"] == "absent"
    assert client.post("/v1/readiness", headers=FOREIGN).status_code == 403
    assert count(client) == 0
    measured(client)
    assert look(client, **FOREIGN)["state"] == "measured"


def test_a_run_at_work_is_not_disturbed(client: TestClient) -> None:
    """The job is told not to time steps; once the device is free they are timed."""
    run_id = launch(client, steps=100_000)
    wait_for(client, run_id, "running")
    asked = look(client)["job"]["spec"]
    assert asked["not_now"] == f"cpu is at work on run {run_id}"
    until(lambda: look(client)["state"] == "measured")
    client.post(f"/v1/runs/{run_id}/kill")
    wait_for(client, run_id, "stopped")
    assert client.post("/v1/readiness").json()["spec"]["not_now"] is None


def test_a_measurement_that_failed_is_not_begun_again_by_looking(client: TestClient) -> None:
    parts = client.app.state.parts  # type: ignore[attr-defined]
    before, _ = parts.jobs.start("other", "subject", {"sleep_s": 60})  # one job at a time: ours waits
    waiting = look(client)["job"]["id"]
    assert client.post(f"/v1/jobs/{waiting}/cancel").status_code == 202
    found = look(client)
    assert (found["state"], found["job"]["id"], found["job"]["state"]) == ("failed", waiting, "cancelled")
    assert count(client) == 1
    client.post(f"/v1/jobs/{before.id}/cancel")
    assert client.post("/v1/readiness").status_code == 202
    measured(client)


def test_no_key_is_shown(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret")
    found = look(client)
    assert found["live"]["wandb"]["key"] is True
    assert "a-secret" not in json.dumps([found, measured(client)])


# --- when a measurement still holds -----------------------------------------------------------------------

WANTED = {"config": {"seed": 1}, "has_gpu": False, "wandb": {"mode": "offline"}, "basis": {"version": "1", "data": "a"}, "not_now": None}
FREE = 10**12
DISK = EXAMPLE["projected"]["disk"]


def job(spec: dict[str, Any] | None = None, result: dict[str, Any] | None = None, age_s: float = 60.0) -> Job:
    return Job(
        id="job", kind=KIND, subject="reasoning", spec={**WANTED, **(spec or {})}, state="completed", created_at=0.0,
        ended_at=time.time() - age_s, result={**EXAMPLE, "disk_free_bytes": FREE, "is_partial": False, **(result or {})},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "wanted", "free", "expected"),
    [
        (job(), {}, FREE, True),
        (job(), {"not_now": "cpu is at work"}, FREE, True),  # what was measured when it was free holds
        (job({"not_now": "cpu is at work"}), {}, FREE, True),
        (job(result={"is_partial": True}), {}, FREE, False),  # it can be measured now
        (job(result={"is_partial": True}), {"not_now": "cpu is at work"}, FREE, True),
        (job(age_s=STALE_S + 1), {}, FREE, False),
        (job(), {"config": {"seed": 2}}, FREE, False),
        (job(), {"basis": {"version": "2", "data": "a"}}, FREE, False),
        (job(), {"basis": {"version": "1", "data": "b"}}, FREE, False),
        (job(), {"wandb": {"mode": "online"}}, FREE, False),
        (job(), {"has_gpu": True}, FREE, False),
        (job(), {}, 10**6, False),  # the disk filled up
        (job(), {}, DISK["for_two_bytes"] - 1, False),  # for a second run
        (job(result={"disk_free_bytes": DISK["for_two_bytes"] - 1}), {}, DISK["for_one_bytes"], True),
        (job(result={"disk_free_bytes": DISK["for_two_bytes"] - 1}), {}, DISK["for_one_bytes"] - 1, False),
        (job(result={"disk_free_bytes": 10**6}), {}, FREE, False),  # it was cleared
    ],
)
def test_what_is_current(measured: Job, wanted: dict[str, Any], free: int, expected: bool) -> None:
    assert is_current(measured, {**WANTED, **wanted}, free, time.time()) is expected


def test_the_fingerprint_is_that_of_the_data_files(tmp_path: Path) -> None:
    empty = fingerprint(tmp_path)
    assert fingerprint(None) == empty
    (tmp_path / "svamp").mkdir()
    file = tmp_path / "svamp" / "train.parquet"
    file.write_bytes(b"rows")
    before = fingerprint(tmp_path)
    assert before != empty
    assert fingerprint(tmp_path) == before
    os.utime(file, (1, 1))
    assert fingerprint(tmp_path) != before
    (tmp_path / "README.md").write_text("no data")
    file.unlink()
    assert fingerprint(tmp_path) == empty
