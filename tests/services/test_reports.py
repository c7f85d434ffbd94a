"""Reports through the service: begun by themselves or asked for, given out while they hold, made anew when the runs have gone on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cognate.config import SPECIALISTS
from cognate.events import Event
from cognate.job import KINDS, perform_of
from cognate.rundir import RunDir, read_journal, read_json, write_json
from tests.service import connect, launch, serving, steps_of, until, wait_for

DIVERSITY = {"diversity_avg_halting_steps": 1.5, "diversity_ltm_usage": None, "diversity_inference_time_ms": 0.25}
SETTINGS = {"data": {"source": "synthetic"}, "training": {"max_steps": 20}, "evaluation": {"at_end": "off"}}


def launch_group(client: TestClient, presets: tuple[str, ...] = SPECIALISTS, steps: int = 20) -> dict[str, Any]:
    config = {**SETTINGS, "training": {"max_steps": steps}}
    group: dict[str, Any] = client.post("/v1/groups", json={"presets": list(presets), "config": config}).json()
    return group


def completed(client: TestClient, group: dict[str, Any]) -> list[dict[str, Any]]:
    return [wait_for(client, run["id"], "completed") for run in group["runs"]]


def ended(client: TestClient, job_id: str) -> dict[str, Any]:
    return until(lambda: (job := client.get(f"/v1/jobs/{job_id}").json())["ended_at"] and job)  # type: ignore[no-any-return]


def jobs(client: TestClient, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/jobs", params={"kind": kind}).json()["data"]
    return found


def test_every_kind_of_job_can_be_performed() -> None:
    assert all(callable(perform_of(kind)) for kind in KINDS)


# --- diversity --------------------------------------------------------------------------------------------


def test_diversity_is_measured_when_the_last_run_of_a_group_completes(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        url = f"/v1/groups/{(group := launch_group(client))['id']}/diversity"
        assert client.get(url).json() | {"group_id": ""} == {
            "group_id": "", "state": "absent", "result": None, "measured_at": None, "job": None,
        }  # fmt: skip
        last = max(completed(client, group), key=lambda run: run["ended_at"])
        found = until(lambda: (found := client.get(url).json())["state"] == "measured" and found)
        assert found["result"]["metrics"] == DIVERSITY
        (job,) = jobs(client, "diversity")
        assert job["spec"]["run_ids"] == [run["id"] for run in group["runs"]]
        assert (job["subject"], found["job"]["id"], found["measured_at"]) == (group["id"], job["id"], job["ended_at"])
        assert {key: client.get(f"/v1/runs/{last['id']}").json()["metrics"].get(key) for key in DIVERSITY} == DIVERSITY
        (event,) = client.get(f"/v1/runs/{last['id']}/events", params={"kind": "diversity"}).json()["data"]
        assert event["data"] == {
            "group_id": group["id"],
            "job_id": job["id"],
            "metrics": DIVERSITY,
            "required_order": found["result"]["required_order"],
        }
        ((told, _),) = read_journal(tmp_path / "runs" / last["id"] / "afterwards.jsonl")
        assert isinstance(told, Event)
        measured = {key: value for key, value in DIVERSITY.items() if value is not None}
        assert (told.data["step"], told.data["values"]) == (last["progress"]["step"], measured)


def test_the_final_row_has_the_three_metrics_and_reaches_who_follows(tmp_path: Path) -> None:
    """Told anew as a whole row of the same step: whoever comes back with an older cursor sees what is read."""
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        group = launch_group(client, ("quickstart", "quickstart"))
        last = max(completed(client, group), key=lambda run: run["ended_at"])
        until(lambda: client.get(f"/v1/groups/{group['id']}/diversity").json()["state"] == "measured")
        columns = client.get(f"/v1/runs/{last['id']}/metrics").json()["columns"]
        assert columns["step"] == list(range(1, 21))
        assert columns["diversity_avg_halting_steps"] == [None] * 19 + [1.5]
        assert columns["diversity_ltm_usage"] == [None] * 20
        assert (columns["loss"][-1], columns["seq"][-1]) == (0.5, max(columns["seq"]))
        with connect(client, f"/v1/runs/{last['id']}/stream?after=start") as stream:
            rows = []
            while not rows or rows[-1][1] is None:
                frame = stream.receive_json()
                if frame["type"] == "batch":
                    told = frame["columns"]
                    rows += zip(
                        told["step"], told.get("diversity_avg_halting_steps", [None] * len(told["step"])), told["loss"], strict=True
                    )
        assert rows[-1] == (20, 1.5, 0.5)


def test_a_follower_is_told_while_it_listens(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        group = launch_group(client, ("quickstart", "quickstart"))
        with connect(client, "/v1/stream?after=now") as stream:
            found: dict[str, Any] = {}
            while "event" not in found or "batch" not in found:
                frame = stream.receive_json()
                if frame["type"] == "batch" and "diversity_avg_halting_steps" in frame["columns"]:
                    found["batch"] = frame
                if frame["type"] == "event" and frame["kind"] == "diversity":
                    found["event"] = frame
        assert found["batch"]["run_id"] == found["event"]["run_id"] in [run["id"] for run in group["runs"]]
        assert found["batch"]["columns"]["step"] == [20]


def test_a_group_that_is_not_complete_is_measured_only_when_asked(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        group = launch_group(client)
        stopped = group["runs"][2]["id"]  # waits for its turn still
        assert client.post(f"/v1/runs/{stopped}/stop").json()["state"] == "stopped"
        for run in group["runs"][:2]:
            wait_for(client, run["id"], "completed")
        assert jobs(client, "diversity") == []
        url = f"/v1/groups/{group['id']}/diversity"
        refused = client.post(url)
        assert (refused.status_code, refused.json()["type"]) == (409, "/v1/problems/not_ready")
        assert stopped in refused.json()["detail"]
        save(tmp_path, stopped, 7)
        answer = client.post(url)
        assert (answer.status_code, answer.json()["spec"]["steps"][stopped]) == (202, 7)
        ended(client, answer.json()["id"])
        assert client.get(url).json()["state"] == "measured"
        assert all(
            run["metrics"].get("diversity_avg_halting_steps") is None for run in client.get(f"/v1/groups/{group['id']}").json()["runs"]
        )


def save(home: Path, run_id: str, step: int) -> None:
    """A checkpoint with this name, and nothing in it."""
    RunDir(home / "runs" / run_id).checkpoint(step).mkdir()


def test_one_run_has_nothing_to_differ_from(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        group = launch_group(client, ("quickstart",))
        completed(client, group)
        assert client.post(f"/v1/groups/{group['id']}/diversity").status_code == 409
        unknown = "/v1/groups/group_00000000-0000-0000-0000-000000000000"
        for path in ("diversity", "handoff", "report"):
            assert client.get(f"{unknown}/{path}").status_code == 404
        assert jobs(client, "diversity") == []


# --- hand-off ---------------------------------------------------------------------------------------------


def test_a_handoff_is_built_and_given_out_while_it_holds(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        group = launch_group(client)
        completed(client, group)
        until(lambda: client.get(f"/v1/groups/{group['id']}/diversity").json()["state"] == "measured")
        url = f"/v1/groups/{group['id']}/handoff"
        absent = client.get(url)
        assert (absent.status_code, absent.json()["type"]) == (409, "/v1/problems/not_ready")
        assert "POST builds it" in absent.json()["detail"]
        answer = client.post(url, json={"allow_any_size": True})
        assert answer.status_code == 202
        job = ended(client, answer.json()["id"])
        assert spec_of(tmp_path, job)["diversity"]["metrics"] == DIVERSITY
        assert (job["spec"]["allow_any_size"], job["spec"]["steps"]) == (True, {run["id"]: 20 for run in group["runs"]})
        archive = client.get(url)
        assert (archive.status_code, archive.content, archive.headers["content-type"]) == (200, b"an archive", "application/x-tar")
        assert archive.headers["etag"] == f'"{"ab" * 32}"'
        assert client.get(url, headers={"Range": "bytes=3-5"}).content == b"arc"
        assert client.get(url, headers={"Range": "bytes=100-"}).json()["type"] == "/v1/problems/range_not_satisfiable"
        # Another checkpoint is the best one now: the archive is of other models.
        save(tmp_path, group["runs"][0]["id"], 5)
        write_json(RunDir(tmp_path / "runs" / group["runs"][0]["id"]).checkpoints / "best.json", {"step": 5, "val_loss": 1.0})
        assert client.get(url).status_code == 409
        assert ended(client, client.post(url).json()["id"])["spec"]["steps"][group["runs"][0]["id"]] == 5
        assert client.get(url).status_code == 200
        shutil.rmtree(tmp_path / "jobs")  # tidied away
        assert client.get(url).status_code == 409


def spec_of(home: Path, job: dict[str, Any]) -> dict[str, Any]:
    """What a job's process was told."""
    spec: dict[str, Any] = read_json(home / "jobs" / job["id"] / "spec.json")["spec"]
    return spec


def test_a_handoff_encloses_what_is_there_when_it_begins(tmp_path: Path) -> None:
    """It may wait behind the very evaluations that it is to enclose; and a later one of another checkpoint takes no place."""
    with serving(tmp_path) as client:
        group = launch_group(client)
        completed(client, group)
        run_id = group["runs"][0]["id"]
        service = client.app.state.parts.jobs  # type: ignore[attr-defined]
        for step, seconds in ((20, 0.5), (5, 0.0)):
            service.start("evaluation", run_id, {"run_id": run_id, "step": step, "sleep_s": seconds, "tell": True})
        url = f"/v1/groups/{group['id']}/handoff"
        job = client.post(url).json()
        assert client.post(url).json()["id"] == job["id"]  # asked twice is asked once
        ended(client, job["id"])
        assert len(spec_of(tmp_path, job)["evaluations"]) == 2


def test_an_archive_without_results_that_there_are_by_now_is_not_given_out(tmp_path: Path) -> None:
    """It says "no evaluation of these weights was given" for ever otherwise. Of other checkpoints' results it would have none."""
    with serving(tmp_path) as client:
        group = launch_group(client)
        completed(client, group)
        until(lambda: client.get(f"/v1/groups/{group['id']}/diversity").json()["state"] == "measured")
        url, run_id = f"/v1/groups/{group['id']}/handoff", group["runs"][0]["id"]
        service = client.app.state.parts.jobs  # type: ignore[attr-defined]
        ended(client, client.post(url).json()["id"])
        for step, status in ((5, 200), (20, 409)):
            job, _ = service.start("evaluation", run_id, {"run_id": run_id, "step": step})
            ended(client, job.id)
            assert client.get(url).status_code == status
        ended(client, client.post(url).json()["id"])
        assert client.get(url).status_code == 200


def test_a_handoff_names_what_is_missing(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "1") as client:
        pair, trio = launch_group(client, ("reasoning", "speed")), launch_group(client)
        for method in (client.get, client.post):
            assert "three models; the group has 2" in method(f"/v1/groups/{pair['id']}/handoff").json()["detail"]
            refused = method(f"/v1/groups/{trio['id']}/handoff")
            assert refused.status_code == 409
            assert all(run["id"] in refused.json()["detail"] for run in trio["runs"])


# --- training reports -------------------------------------------------------------------------------------


def shown(client: TestClient, url: str, accept: str = "*/*") -> Any:
    """The report once it is there."""
    return until(lambda: (answer := client.get(url, headers={"Accept": accept})).status_code == 200 and answer)


def test_a_report_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=10, name="mine")
        wait_for(client, run_id, "completed")
        url = f"/v1/runs/{run_id}/report"
        answer = client.get(url)
        assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{answer.json()['id']}")
        html = shown(client, url)
        assert html.text == f"<!doctype html> mine ({run_id[-6:]})"
        assert html.headers["content-type"] == "text/html; charset=utf-8"
        assert html.headers["content-security-policy"].startswith("default-src 'none'")
        assert shown(client, url, "text/markdown").text.startswith("# Report")
        assert shown(client, url, "text/markdown, text/html").text.startswith("<!doctype html>")
        assert len(jobs(client, "training_report")) == 1
        shutil.rmtree(tmp_path / "jobs")
        assert client.get(url).status_code == 202


def test_a_report_is_made_anew_when_the_run_has_gone_on(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.02") as client:
        run_id = launch(client, steps=10_000)
        until(lambda: len(steps_of(client, run_id)) > 3)
        shown(client, url := f"/v1/runs/{run_id}/report")
        assert client.get(url).status_code == 200  # rows alone are no reason: a report would never be up to date
        client.post(f"/v1/runs/{run_id}/checkpoint")
        until(lambda: client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"])
        assert client.get(url).status_code == 202
        client.post(f"/v1/runs/{run_id}/kill")


def test_a_report_that_waits_is_not_asked_for_again(tmp_path: Path) -> None:
    """Checkpoints come while it waits behind other jobs. It tells of the runs as they are when it begins, so one will do."""
    with serving(tmp_path) as client:
        run_id = launch(client, steps=10)
        wait_for(client, run_id, "completed")
        client.app.state.parts.jobs.start("anything", "else", {"sleep_s": 0.5})  # type: ignore[attr-defined]
        url = f"/v1/runs/{run_id}/report"
        first = client.get(url).json()["id"]
        save(tmp_path, run_id, 11)
        assert client.get(url).json()["id"] == first
        ended(client, first)
        assert client.get(url).status_code == 200
        assert len(jobs(client, "training_report")) == 1
        client.patch(f"/v1/runs/{run_id}", json={"name": "renamed"})
        assert client.get(url).status_code == 202


def test_a_group_has_one_report_of_all_its_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        group = launch_group(client)
        completed(client, group)
        text = shown(client, f"/v1/groups/{group['id']}/report", "text/markdown").text
        assert all(run["id"][-6:] in text for run in group["runs"])


def test_a_report_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.main.facts_for_report", lambda *_: {"fail": ["broken", "a sentence"]})
    with serving(tmp_path) as client:
        run_id = launch(client, steps=10)
        wait_for(client, run_id, "completed")
        job = ended(client, client.get(f"/v1/runs/{run_id}/report").json()["id"])
        refused = client.get(f"/v1/runs/{run_id}/report")
        assert (job["state"], refused.status_code) == ("failed", 409)
        assert "a sentence" in refused.json()["detail"]
