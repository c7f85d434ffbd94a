"""Jobs: started once, tended by the supervisor's loop, ended with a result or a reason, whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.deps import Parts
from app.services import jobs
from cognate.rundir import read_json
from tests.service import launch, serving, until, wait_for


def start(client: TestClient, kind: str = "anything", **spec: Any) -> str:
    job, _ = parts(client).jobs.start(kind, "subject", spec)
    return job.id


def parts(client: TestClient) -> Parts:
    return client.app.state.parts  # type: ignore[attr-defined,no-any-return]


def ended(client: TestClient, job_id: str) -> dict[str, Any]:
    return until(lambda: (job := client.get(f"/v1/jobs/{job_id}").json())["ended_at"] and job)  # type: ignore[no-any-return]


def test_a_job_gives_its_result(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        job = ended(client, start(client, result={"score": 3, "loss": 0.5}))
    assert (job["state"], job["result"], job["reason"]) == ("completed", {"score": 3, "loss": 0.5}, None)
    assert job["device"] == "cpu"
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]


@pytest.mark.parametrize(
    ("spec", "reason", "detail"),
    [
        ({"fail": ["offline", "there is no network"]}, "offline", "there is no network"),
        ({"crash": 3}, "job_lost", "its process left with code 3 and no result"),
    ],
)
def test_a_job_that_fails_says_why(tmp_path: Path, spec: dict[str, Any], reason: str, detail: str) -> None:
    with serving(tmp_path) as client:
        job = ended(client, start(client, **spec))
    assert (job["state"], job["reason"], job["detail"], job["result"]) == ("failed", reason, detail, None)


def test_a_killed_job_is_lost_and_the_next_one_is_done(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        first, second = start(client, sleep_s=60), start(client, result={})
        job = until(lambda: (job := client.get(f"/v1/jobs/{first}").json())["progress"] and job)
        assert job["progress"] == {"message": "sleeping", "fraction": 0.5}
        assert client.get(f"/v1/jobs/{second}").json()["state"] == "queued"
        started = read_json(tmp_path / "jobs" / first / "started.json")
        os.kill(started["pid"], signal.SIGKILL)
        assert ended(client, first)["detail"] == "its process was killed by signal 9"
        assert ended(client, second)["state"] == "completed"


def test_a_job_that_says_nothing_for_long_is_ended(tmp_path: Path) -> None:
    """It had the only GPU for ever."""
    with serving(tmp_path, job_stall_after_s=1.0) as client:
        hanging, muttering = start(client, sleep_s=3600), start(client, mutter_s=2.0, result={})
        job = ended(client, hanging)
        assert (job["state"], job["reason"]) == ("failed", "job_stalled")
        assert job["detail"].startswith("no word for 1 s")
        pid = read_json(tmp_path / "jobs" / hanging / "started.json")["pid"]
        assert not Path(f"/proc/{pid}").exists()
        assert ended(client, muttering)["state"] == "completed"


def test_what_is_soon_done_does_not_wait_for_what_is_not(tmp_path: Path) -> None:
    """Counting the rows of the datasets had waited thirteen minutes for an evaluation."""
    with serving(tmp_path) as client:
        heavy = start(client, "evaluation", sleep_s=60)
        until(lambda: client.get(f"/v1/jobs/{heavy}").json()["state"] == "running")
        assert ended(client, start(client, "data_status", result={}))["state"] == "completed"
        assert client.get(f"/v1/jobs/{heavy}").json()["state"] == "running"


def test_asking_twice_is_asking_once_until_it_is_done(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        service = parts(client).jobs
        first, is_new = service.start("kind", "subject", {"sleep_s": 0.3})
        again, again_is_new = service.start("kind", "subject", {"sleep_s": 0.3})
        other, other_is_new = service.start("kind", "other", {"sleep_s": 0.3})
        assert (is_new, again_is_new, other_is_new) == (True, False, True)
        assert first.id == again.id != other.id
        ended(client, first.id)
        _, is_new = service.start("kind", "subject", {"sleep_s": 0.3})
        assert is_new
        listed = client.get("/v1/jobs", params={"subject": "subject"}).json()["data"]
        assert len(listed) == 2
        assert {job["subject"] for job in listed} == {"subject"}


def test_a_request_with_a_key_starts_one_job_however_often_it_comes(tmp_path: Path) -> None:
    """Else one whose answer was lost, sent again, would measure for another hour what has just been measured."""
    key = {"Idempotency-Key": "k"}
    with serving(tmp_path) as client:
        first = client.post("/v1/readiness?preset=quickstart", headers=key)
        assert first.status_code == 202
        ended(client, first.json()["id"])
        again = client.post("/v1/readiness?preset=quickstart", headers=key)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        assert again.headers["Location"] == first.headers["Location"]
        other = client.post("/v1/readiness?preset=speed", headers=key)
        assert other.json()["type"] == "/v1/problems/idempotency_key_reused"
        assert client.post("/v1/readiness?preset=quickstart").status_code == 202


def test_every_request_that_starts_a_job_takes_a_key(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        paths = client.get("/openapi.json").json()["paths"]
    starts = {path: methods["post"] for path, methods in paths.items() if "JobOut" in str(methods.get("post")) and "/jobs/" not in path}
    assert len(starts) == 5
    for path, operation in starts.items():
        assert "idempotency-key" in {parameter["name"].lower() for parameter in operation["parameters"]}, path


def test_a_job_can_be_given_up_waiting_and_at_work(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        at_work, waiting = start(client, sleep_s=60), start(client, result={})
        until(lambda: client.get(f"/v1/jobs/{at_work}").json()["progress"])
        for job_id in (waiting, at_work):
            assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 202
            assert ended(client, job_id)["state"] == "cancelled"
            assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
        assert client.post("/v1/jobs/job_00000000-0000-0000-0000-000000000000/cancel").status_code == 404


def test_a_job_begins_anew_after_the_service_ended(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        job_id = start(client, sleep_s=1.5, result={"done": True})
        until(lambda: client.get(f"/v1/jobs/{job_id}").json()["progress"])
        pid = read_json(tmp_path / "jobs" / job_id / "started.json")["pid"]
    until(lambda: not Path(f"/proc/{pid}").exists())
    with serving(tmp_path) as client:
        assert ended(client, job_id)["result"] == {"done": True}


def test_a_job_works_beside_a_run_on_the_cpu(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        run_id = launch(client, steps=1000)
        wait_for(client, run_id, "running")
        assert ended(client, start(client, result={}))["state"] == "completed"
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "running"


def test_a_job_takes_a_gpu_that_no_run_holds_and_no_run_is_put_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.executors.local.usable_gpus", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr("app.executors.local.holds_memory", lambda *_: False)
    with serving(tmp_path, "--step-seconds", "0.01", cpu_slots=0) as client:
        job_id = start(client, tell=True, sleep_s=1.0)
        until(lambda: client.get(f"/v1/jobs/{job_id}").json()["started_at"])
        runs = [launch(client, steps=1000) for _ in range(2)]
        wait_for(client, runs[0], "running")
        devices = client.get("/v1/devices").json()["data"]
        assert [(device["run_id"], device["job_id"]) for device in devices] == [(None, job_id), (runs[0], None)]
        assert "cognate_slots_free 0.0" in client.get("/metrics").text
        job = ended(client, job_id)
        assert (job["device"], job["result"]["device"]) == ("cuda:0", "cuda:0")
        wait_for(client, runs[1], "running")
        patient = start(client, tell=True, needs_gpu=True)
        job = ended(client, start(client, tell=True))  # no GPU is left
        assert (job["device"], job["result"]["device"]) == ("cpu", "cpu")
        assert client.get(f"/v1/jobs/{patient}").json()["state"] == "queued"
        client.post(f"/v1/runs/{runs[1]}/kill")
        assert ended(client, patient)["device"] == "cuda:0"


def test_where_there_is_no_gpu_none_is_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        assert ended(client, start(client, result={}, needs_gpu=True))["device"] == "cpu"


def test_a_job_sees_no_secret_and_only_one_kind_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COGNATE_TOKEN", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serving(tmp_path, token="secret") as client:
        client.headers["Authorization"] = "Bearer secret"
        seen, seen_online = (set(ended(client, start(client, kind, tell=True))["result"]["environment"]) for kind in ("report", "fetch"))
    assert not {"COGNATE_TOKEN", "WANDB_API_KEY", "HF_TOKEN"} & seen
    assert "HF_TOKEN" in seen_online
    assert not {"COGNATE_TOKEN", "WANDB_API_KEY"} & seen_online
    assert seen - seen_online == {"HF_HUB_OFFLINE"}


def test_only_the_newest_folders_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "FOLDERS_KEPT", 2)
    with serving(tmp_path) as client:
        made = [start(client, result={"number": number}) for number in range(4)]
        assert [ended(client, job_id)["result"]["number"] for job_id in made] == [0, 1, 2, 3]
        until(lambda: {path.name for path in (tmp_path / "jobs").iterdir()} == set(made[2:]))


def test_the_newest_of_what_a_person_asked_for_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of three models went with the twentieth evaluation after it."""
    monkeypatch.setattr(jobs, "FOLDERS_KEPT", 1)
    monkeypatch.setattr(jobs, "LASTING", frozenset({"odd"}))
    with serving(tmp_path) as client:
        made = [ended(client, start(client, "odd", result={}))["id"] for _ in range(2)]
        made += [ended(client, start(client, result={}))["id"] for _ in range(2)]
        until(lambda: {path.name for path in (tmp_path / "jobs").iterdir()} == {made[1], made[3]})


def test_a_clock_that_is_set_back_leaves_the_newest_job_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its time a job of today was older than those of a tomorrow that has not come, and its files were removed as it ended."""
    monkeypatch.setattr(jobs, "FOLDERS_KEPT", 2)
    monkeypatch.setattr(jobs, "LASTING", frozenset({"odd"}))
    true_uuid, ids = jobs.uuid7, iter([f"ffffffff-0000-7000-8000-00000000000{number}" for number in range(3)])
    monkeypatch.setattr(jobs, "uuid7", lambda: next(ids, None) or true_uuid())
    with serving(tmp_path) as client:
        tomorrow = [ended(client, start(client, "odd", result={}))["id"] for _ in range(3)]
        today = [ended(client, start(client, "odd", result={}))["id"] for _ in range(2)]
        until(lambda: {path.name for path in (tmp_path / "jobs").iterdir()} == set(today))
        listed = [job["id"] for job in client.get("/v1/jobs").json()["data"]]
        assert listed == [*reversed(today), *reversed(tomorrow)]
        first = client.get("/v1/jobs", params={"limit": 3}).json()
        rest = client.get("/v1/jobs", params={"limit": 3, "after": first["next_cursor"]}).json()
        assert [job["id"] for job in first["data"] + rest["data"]] == listed
        assert client.get("/v1/jobs", params={"after": f"job_{true_uuid()}"}).json()["data"] == []


def test_a_result_that_cannot_be_noted_keeps_no_run_from_being_looked_after(tmp_path: Path) -> None:
    asked: list[Any] = []

    def refuse(*given: Any) -> None:
        asked.append(given)
        raise KeyError("planted")

    with serving(tmp_path) as client:
        service = parts(client)
        service.jobs._on_completed = {"odd": refuse}
        job_id = start(client, "odd", result={})
        until(lambda: asked)
        service.supervisor.look()
        wait_for(client, launch(client, steps=2), "completed")
        service.jobs._on_completed = {}
        assert ended(client, job_id)["state"] == "completed"
