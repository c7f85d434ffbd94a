"""What commands promise: a pause by its deadline, a checkpoint now, forks, groups, priorities, edits, deletions; each once."""

import errno
import os
import shutil
import sqlite3
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from app.executors.base import LaunchError
from app.executors.local import LocalExecutor
from app.services import resumption, supervisor
from app.services.lifecycle import TRANSITIONS
from app.store import engine
from cognate.rundir import AttemptDir, RunDir, read_json
from tests.service import HOLD, launch, serving, steps_of, until, wait_for

SLOW = ("--step-seconds", "0.02")
FURTHER = {"config": {"training": {"max_steps": 1000}}}


def training(client: TestClient, run_id: str, steps: int = 3) -> None:
    until(lambda: len(steps_of(client, run_id)) >= steps)


def events(client: TestClient, run_id: str, kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in client.get(f"/v1/runs/{run_id}/events", params={"kind": kind}).json()["data"]]


# --- pause, stop, checkpoint ------------------------------------------------------------------------------------


def test_a_pause_that_need_not_save_leaves_at_once_and_its_steps_are_done_again(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW) as client:
        run_id = launch(client, steps=10_000)
        training(client, run_id)
        assert client.post(f"/v1/runs/{run_id}/checkpoint").status_code == 202
        (saved,) = until(lambda: client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"])
        training(client, run_id, saved["step"] + 5)
        assert client.post(f"/v1/runs/{run_id}/pause", json={"checkpoint": "latest"}).status_code == 202
        wait_for(client, run_id, "paused")
        assert client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"] == [saved]
        done = len(steps_of(client, run_id))
        client.post(f"/v1/runs/{run_id}/resume")
        training(client, run_id, done + 5)
        client.post(f"/v1/runs/{run_id}/stop")
        wait_for(client, run_id, "stopped")
        attempts = client.get(f"/v1/runs/{run_id}/attempts").json()["data"]
        assert attempts[1]["resumed_from_step"] == saved["step"]
        steps = steps_of(client, run_id)
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps_of(client, run_id, "all")) == len(steps) + done - saved["step"]


def test_a_late_pause_is_forgotten_when_asked_so_and_the_run_says_why(tmp_path: Path) -> None:
    """The worker hears of neither, since it never listens again."""
    with serving(tmp_path, *SLOW, "--fault", "hang@5") as client:
        run_id = launch(client, steps=30)
        training(client, run_id, 5)
        client.post(f"/v1/runs/{run_id}/pause", json={"deadline_s": 0.3})
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "pausing"
        run = wait_for(client, run_id, "running")
        assert (run["state_reason"], run["state_detail"]) == ("pause_timeout", "not paused within 0.3 s")
        assert read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).control)["command"] in ("pause", "run")
        until(lambda: read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).control)["command"] == "run")
        client.post(f"/v1/runs/{run_id}/kill")
        wait_for(client, run_id, "stopped")


def test_a_late_pause_ends_the_run_when_asked_so(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW, "--fault", "hang@5") as client:
        run_id = launch(client, steps=30)
        training(client, run_id, 5)
        pid = read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).started)["pid"]
        client.post(f"/v1/runs/{run_id}/pause", json={"deadline_s": 0.3, "on_timeout": "stop"})
        run = wait_for(client, run_id, "stopped")
        assert run["state_reason"] == "pause_timeout"
        assert not psutil.pid_exists(pid)


def test_a_pause_that_comes_after_its_deadline_is_a_pause_all_the_same(tmp_path: Path) -> None:
    """The worker was saving when the pause was given up: the truth is that it has left."""
    with serving(tmp_path, *HOLD, "--slow-pause", "1.0") as client:
        run_id = launch(client, steps=30)
        training(client, run_id)
        client.post(f"/v1/runs/{run_id}/pause", json={"deadline_s": 0.2})
        wait_for(client, run_id, "running")
        assert wait_for(client, run_id, "paused")["state_reason"] == "pause_timeout"
        client.post(f"/v1/runs/{run_id}/resume")
        wait_for(client, run_id, "completed")


def test_a_checkpoint_is_saved_on_request_and_training_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW) as client:
        run_id = launch(client, steps=10_000)
        assert client.post(f"/v1/runs/{run_id}/checkpoint").json()["type"] == "/v1/problems/invalid_transition"
        training(client, run_id)
        for count in (1, 2):
            assert client.post(f"/v1/runs/{run_id}/checkpoint").status_code == 202
            until(lambda count=count: len(client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]) == count)  # type: ignore[misc]
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "running"
        client.post(f"/v1/runs/{run_id}/pause")
        wait_for(client, run_id, "paused")
        assert len(client.get(f"/v1/runs/{run_id}/attempts").json()["data"]) == 1


# --- what goes on by itself -------------------------------------------------------------------------------------


@pytest.fixture(name="_soon")
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "AFTER_S", 0.01)


@pytest.mark.usefixtures("_soon")
def test_a_lost_worker_is_replaced_and_the_run_completes(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "crash@7", auto_resume=1) as client:
        run_id = launch(client, steps=20)
        run = wait_for(client, run_id, "completed")
        assert (run["attempt"], run["auto_resumes"]) == (2, 0)  # progress was made: it may be lost as often again
        reasons = [event["reason"] for event in events(client, run_id, "state")]
        assert reasons == [None, None, None, "exit_nonzero", "auto_resume", None, None, None]


def test_a_run_whose_worker_is_lost_keeps_its_place(tmp_path: Path) -> None:
    """One that is nearly done would else wait for all that a whole other run takes."""
    with serving(tmp_path, *SLOW, auto_resume=1) as client:
        first, second = launch(client, steps=10_000), launch(client, steps=10_000)
        wait_for(client, first, "running")
        os.kill(read_json(RunDir(tmp_path / "runs" / first).attempt(1).started)["pid"], 9)
        until(lambda: client.get(f"/v1/runs/{first}").json()["attempt"] == 2)
        assert client.get(f"/v1/runs/{second}").json()["state"] == "queued"
        assert [event["state"] for event in events(client, second, "state")] == ["queued"]


@pytest.mark.usefixtures("_soon")
def test_a_worker_that_is_lost_again_and_again_is_replaced_so_many_times(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW, auto_resume=2) as client:
        run_id = launch(client, steps=10_000)

        def kill_attempt(number: int) -> None:
            attempt = RunDir(tmp_path / "runs" / run_id).attempt(number)
            until(lambda: client.get(f"/v1/runs/{run_id}").json()["attempt"] == number and attempt.started.exists())
            os.kill(read_json(attempt.started)["pid"], 9)

        for number in (1, 2, 3):
            kill_attempt(number)
        run = until(lambda: (run := client.get(f"/v1/runs/{run_id}").json())["state"] == "interrupted" and run["auto_resumes"] == 2 and run)
        assert (run["attempt"], run["state_reason"]) == (3, "signal")
        client.post(f"/v1/runs/{run_id}/resume")  # a person may always; and the count begins anew
        assert wait_for(client, run_id, "running")["auto_resumes"] == 0
        client.post(f"/v1/runs/{run_id}/kill")
        wait_for(client, run_id, "stopped")


@pytest.fixture(name="free")
def disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes that are free: none once something is launched."""
    free, launch = [1 << 40], LocalExecutor.launch

    def fill(executor: LocalExecutor, attempt: AttemptDir, device: str) -> None:
        launch(executor, attempt, device)
        free[0] = 0

    monkeypatch.setattr(LocalExecutor, "launch", fill)
    monkeypatch.setattr(supervisor.Supervisor, "_free_bytes", lambda _: free[0])
    return free


def test_a_full_disk_pauses_the_run_until_there_is_space(tmp_path: Path, free: list[int]) -> None:
    with serving(tmp_path, "--fault", "full@7") as client:
        run_id = launch(client, steps=20)
        run = wait_for(client, run_id, "paused")
        assert run["state_reason"] == "disk_full"
        assert "No space left" in run["state_detail"]
        assert run["allowed_commands"] == ["resume", "stop"]
        free[0] = 1 << 40
        wait_for(client, run_id, "completed")


def test_a_run_that_waits_for_space_can_be_told_to_stay(tmp_path: Path, free: list[int]) -> None:
    with serving(tmp_path, "--fault", "full@7") as client:
        run_id = launch(client, steps=20)
        wait_for(client, run_id, "paused")
        assert client.post(f"/v1/runs/{run_id}/pause").json()["state_reason"] == "user_pause"
        free[0] = 1 << 40
        client.app.state.parts.supervisor.look()  # type: ignore[attr-defined]
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "paused"


def test_space_for_a_first_checkpoint_is_estimated_and_tried_later_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had no checkpoint yet was launched again at once, from the start, for ever."""
    monkeypatch.setattr(resumption, "DISK_FLOOR_BYTES", 0)
    monkeypatch.setattr(resumption, "AFTER_S", 3600.0)
    free = [1]
    monkeypatch.setattr(supervisor.Supervisor, "_free_bytes", lambda _: free[0])
    with serving(tmp_path, "--fault", "always_full@7") as client:
        run_id = launch(client, steps=20)
        wait_for(client, run_id, "paused")
        look = client.app.state.parts.supervisor.look  # type: ignore[attr-defined]
        free[0] = 2 * 16  # of the one parameter that the fake worker has
        look()
        assert client.get(f"/v1/runs/{run_id}").json()["attempt"] == 1
        free[0] += 1
        look()
        until(lambda: (run := client.get(f"/v1/runs/{run_id}").json())["state"] == "paused" and run["attempt"] == 2)
        for _ in range(3):
            look()
        run = client.get(f"/v1/runs/{run_id}").json()
        assert (run["state"], run["attempt"], run["auto_resumes"]) == ("paused", 2, 0)


@pytest.mark.usefixtures("free")
def test_a_worker_that_a_full_disk_silenced_is_not_called_crashed(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "crash@7") as client:
        assert wait_for(client, launch(client, steps=20), "paused")["state_reason"] == "disk_full"


def test_a_run_that_could_not_save_is_not_set_to_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trained to its next checkpoint, 500 steps, and lost them."""
    free = [2 * resumption.DISK_FLOOR_BYTES]
    monkeypatch.setattr(supervisor.Supervisor, "_free_bytes", lambda _: free[0])
    with serving(tmp_path) as client:
        run_id = launch(client, steps=20)
        run = wait_for(client, run_id, "paused")
        assert (run["attempt"], run["state_reason"]) == (0, "disk_full")
        assert run["state_detail"] == "128 MiB are free, and a run begins with more than 128 MiB, so that it can save"
        free[0] += 1
        wait_for(client, run_id, "completed")


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize(
    ("number", "passes_on", "state", "reason"),
    [
        (errno.ENOSPC, False, "paused", "disk_full"),
        (errno.EDQUOT, True, "paused", "disk_full"),
        (errno.EMFILE, False, "interrupted", "launch_failed"),
        (errno.EAGAIN, True, "interrupted", "launch_failed"),
    ],
)
def test_a_launch_that_is_refused_for_a_passing_reason_is_tried_again(
    number: int, passes_on: bool, state: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """passes_on: whether the executor says it in words of its own"""
    launching, refusals = LocalExecutor.launch, iter([OSError(number, os.strerror(number))])

    def refuse_once(executor: LocalExecutor, attempt: AttemptDir, device: str) -> None:
        if error := next(refusals, None):
            if passes_on:
                raise LaunchError(f"cannot start a process: {error}") from error
            raise error
        launching(executor, attempt, device)

    monkeypatch.setattr(LocalExecutor, "launch", refuse_once)
    with serving(tmp_path, auto_resume=1) as client:
        run_id = launch(client, steps=5)
        run = wait_for(client, run_id, "completed", "failed")
        assert (run["state"], run["attempt"]) == ("completed", 2)
        told = [(event["state"], event["reason"]) for event in events(client, run_id, "state")]
        assert told[2:4] == [(state, reason), ("queued", "auto_resume")]


def test_silence_is_told_once_and_forgiven(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "doze@7", "--step-seconds", "0.05", stall_after_s=3.0) as client:
        run_id = launch(client, steps=20)
        wait_for(client, run_id, "completed")
        (stalled,) = events(client, run_id, "alert")
        assert (stalled["kind"], stalled["severity"]) == ("stalled", "critical")
        assert stalled["evidence"]["silent_s"] >= 3.0
        (cleared,) = events(client, run_id, "alert_cleared")
        assert (cleared["kind"], cleared["message"]) == ("stalled", "the worker speaks again")
        assert client.get(f"/v1/runs/{run_id}").json()["alerts"] == []


@pytest.mark.usefixtures("_soon")
def test_a_worker_that_hangs_is_replaced_when_asked_so(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "hang@7", stall_after_s=3.0, on_stall="restart", auto_resume=1) as client:
        run_id = launch(client, steps=20)
        assert wait_for(client, run_id, "completed")["attempt"] == 2
        told = events(client, run_id, "state")
        assert [event["state"] for event in told][2:5] == ["running", "interrupted", "queued"]
        assert told[3]["reason"] == "stalled"
        assert all(after["state"] in TRANSITIONS[before["state"]].values() for before, after in pairwise(told))


@pytest.mark.usefixtures("_soon")
def test_a_worker_that_hangs_while_it_is_to_pause_is_ended_when_asked_so(tmp_path: Path) -> None:
    """Nothing but stop and kill could be asked of its run, and both are for good."""
    with serving(tmp_path, "--fault", "hang@7", stall_after_s=3.0, on_stall="restart", auto_resume=1) as client:
        run_id = launch(client, steps=20)
        training(client, run_id, 7)
        assert client.post(f"/v1/runs/{run_id}/pause").json()["state"] == "pausing"
        run = wait_for(client, run_id, "interrupted")
        assert (run["state_reason"], run["allowed_commands"]) == ("pause_timeout", ["resume", "stop"])
        assert run["state_detail"].startswith("no word for ")
        look = client.app.state.parts.supervisor.look  # type: ignore[attr-defined]
        for _ in range(3):
            look()
        assert client.get(f"/v1/runs/{run_id}").json()["attempt"] == 1
        client.post(f"/v1/runs/{run_id}/resume")
        wait_for(client, run_id, "completed")


@pytest.mark.usefixtures("_soon")
def test_a_kill_ends_a_run_whose_stalled_worker_is_being_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for while the worker is ended to be launched again, it must not pass for what is done already."""
    with serving(tmp_path, "--fault", "hang@7", stall_after_s=3.0, on_stall="restart", auto_resume=1) as client:
        executor = client.app.state.parts.supervisor._executor  # type: ignore[attr-defined]
        kill = executor.kill
        monkeypatch.setattr(executor, "kill", lambda _: None)  # a process that is stuck in a driver
        run_id = launch(client, steps=20)
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["state_reason"] == "stalled")
        assert client.post(f"/v1/runs/{run_id}/kill").json()["state"] == "stopping"
        monkeypatch.setattr(executor, "kill", kill)
        assert wait_for(client, run_id, "stopped")["state_reason"] == "user_kill"


# --- the queue --------------------------------------------------------------------------------------------------


def test_the_highest_priority_goes_first_and_can_be_changed(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        client.put("/v1/queue", json={"held": True})
        first, second, urgent = (launch(client, steps=2, name=name, priority=value) for name, value in (("a", 0), ("b", 0), ("c", 5)))
        queue = client.get("/v1/queue").json()
        assert (queue["held"], [run["id"] for run in queue["data"]]) == (True, [urgent, first, second])
        client.patch(f"/v1/runs/{second}", json={"priority": 9})
        assert [run["queue_position"] for run in client.get("/v1/queue").json()["data"]] == [1, 2, 3]
        assert client.get(f"/v1/runs/{second}").json()["queue_position"] == 1
        client.put("/v1/queue", json={"held": False})
        runs = [wait_for(client, run_id, "completed") for run_id in (first, second, urgent)]
        assert runs[1]["started_at"] < runs[2]["started_at"] < runs[0]["started_at"]


def test_a_held_queue_stays_held_over_a_restart(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        run_id = launch(client, steps=2)
    with serving(tmp_path) as client:
        assert client.get("/v1/queue").json()["held"]
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "queued"
        client.put("/v1/queue", json={"held": False})
        wait_for(client, run_id, "completed")


def test_devices_name_the_run_that_holds_them(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW, cpu_slots=2) as client:
        run_id = launch(client, steps=500)
        wait_for(client, run_id, "running")
        assert [(device["slot"], device["run_id"]) for device in client.get("/v1/devices").json()["data"]] == [
            ("cpu", run_id),
            ("cpu", None),
        ]
        client.post(f"/v1/runs/{run_id}/kill")
        wait_for(client, run_id, "stopped")


# --- forks and groups -------------------------------------------------------------------------------------------


def test_a_fork_goes_on_from_a_checkpoint_under_its_own_configuration(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        source = launch(client, steps=20)
        assert client.post(f"/v1/runs/{source}/fork").status_code in (404, 422)  # no checkpoint yet, or nothing left to do
        wait_for(client, source, "completed")
        (checkpoint,) = client.get(f"/v1/runs/{source}/checkpoints").json()["data"]
        changes = {"training": {"max_steps": 25}, "optimizer": {"muon_lr": 0.5}}
        answer = client.post(f"/v1/runs/{source}/fork", json={"checkpoint_id": checkpoint["id"], "config": changes, "name": "further"})
        assert answer.status_code == 201, answer.text
        fork = answer.json()
        assert fork["forked_from"] == {"run_id": source, "checkpoint_id": checkpoint["id"], "step": 20}
        assert fork["config"]["optimizer"]["muon_lr"] == 0.5
        shutil.rmtree(tmp_path / "runs" / source)  # a fork stands on its own files
        wait_for(client, fork["id"], "completed")
        assert steps_of(client, fork["id"]) == list(range(21, 26))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": {"d_model": 64}}, "model"),
        ({"training": {"batch_size": 3}}, "training.batch_size"),
        ({"data": {"synthetic_problems": 300}}, "data"),
        ({"seed": 3}, "seed"),
        ({}, "training.max_steps"),  # as many as the source had: nothing would be left to do
        ({"training": {"max_steps": None, "epochs": 1}}, "training.epochs"),  # of two steps, by the source's plan
    ],
)
def test_a_fork_cannot_change_what_its_checkpoint_means(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        source = launch(client, steps=2)
        wait_for(client, source, "completed")
        answer = client.post(f"/v1/runs/{source}/fork", json={"config": change})
        assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])
        assert len(client.get("/v1/runs").json()["data"]) == 1


def test_a_fork_of_a_checkpoint_whose_files_are_gone_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    """A worker that saves removes older checkpoints before the journal that says so is read."""
    with serving(tmp_path) as client:
        source = launch(client, steps=2)
        wait_for(client, source, "completed")
        shutil.rmtree(tmp_path / "runs" / source / "checkpoints" / "step_000002")
        answer = client.post(f"/v1/runs/{source}/fork", json=FURTHER)
        assert (answer.status_code, answer.json()["type"]) == (404, "/v1/problems/not_found")
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [source]


def test_a_repeated_fork_with_a_key_is_the_first_one_though_its_source_is_gone(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        source = launch(client, steps=2)
        wait_for(client, source, "completed")
        first = client.post(f"/v1/runs/{source}/fork", json=FURTHER, headers={"Idempotency-Key": "f"})
        assert client.delete(f"/v1/runs/{source}").status_code == 204
        again = client.post(f"/v1/runs/{source}/fork", json=FURTHER, headers={"Idempotency-Key": "f"})
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])


def test_a_command_to_a_group_takes_effect_once(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        path = f"/v1/groups/{client.post('/v1/groups', json={'presets': ['quickstart'] * 2}).json()['id']}"
        key = {"Idempotency-Key": "g"}
        assert client.post(f"{path}/pause", headers=key).status_code == 202
        assert client.post(f"{path}/pause").status_code == 200  # in effect
        assert client.post(f"{path}/resume").json()["states"] == {"queued": 2}
        again = client.post(f"{path}/pause", headers=key)
        assert (again.status_code, again.json()["states"]) == (200, {"queued": 2})
        assert client.post(f"{path}/stop", headers=key).json()["type"] == "/v1/problems/idempotency_key_reused"


def test_what_trains_on_real_data_only_is_refused_where_there_are_none(tmp_path: Path) -> None:
    """It had been queued and launched, to fail a minute later."""
    with serving(tmp_path) as client:
        for path, body in (("runs", {"preset": "memory"}), ("runs?dry_run=true", {"preset": "memory"}), ("groups", {})):
            answer = client.post(f"/v1/{path}", json=body)
            assert (answer.status_code, answer.json()["type"]) == (409, "/v1/problems/data_missing")
            assert "COGNATE_DATA_DIR" in answer.json()["detail"]
        assert client.get("/v1/runs").json()["data"] == []
        file = tmp_path / "cache" / "datasets" / "svamp" / "train.parquet"
        file.parent.mkdir(parents=True)
        file.touch()  # fetched since
        assert client.post("/v1/runs", json={"preset": "memory"}).status_code == 201


def test_a_group_is_launched_and_commanded_as_one(tmp_path: Path) -> None:
    changes = {"data": {"source": "synthetic"}, "training": {"max_steps": 500}}
    with serving(tmp_path, *SLOW, cpu_slots=2) as client:
        answer = client.post(
            "/v1/groups", json={"name": "night", "config": changes, "overrides": {"speed": {"training": {"max_steps": 7}}}}
        )
        assert answer.status_code == 201, answer.text
        group = answer.json()
        assert [(run["preset"], run["name"]) for run in group["runs"]] == [
            ("reasoning", "night reasoning"),
            ("memory", "night memory"),
            ("speed", "night speed"),
        ]
        path = f"/v1/groups/{group['id']}"
        until(lambda: client.get(path).json()["states"] == {"running": 2, "queued": 1})
        assert client.post(f"{path}/pause").status_code == 202
        until(lambda: client.get(path).json()["states"] == {"paused": 3})
        assert client.post(f"{path}/resume").json()["states"] == {"queued": 3}
        until(lambda: client.get(path).json()["states"].get("running") == 2)
        client.post(f"{path}/kill")
        until(lambda: client.get(path).json()["states"].get("stopped", 0) >= 2)
        assert [run["id"] for run in client.get("/v1/runs", params={"group_id": group["id"]}).json()["data"]] == [
            run["id"] for run in reversed(group["runs"])
        ]
        client.post(f"{path}/stop")
        wait_for(client, group["runs"][2]["id"], "stopped", "completed")
        answer = client.post(f"{path}/resume")
        assert answer.status_code == 409


def test_a_group_with_one_member_at_fault_is_no_group(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        answer = client.post("/v1/groups", json={"presets": ["quickstart", "resoning"]})
        assert answer.status_code == 422
        answer = client.post("/v1/groups", json={"overrides": {"quickstart": {}}})
        assert answer.json()["errors"][0]["field"] == "overrides.quickstart"
        assert client.get("/v1/runs").json()["data"] == []
        assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


# --- each once --------------------------------------------------------------------------------------------------


def test_a_request_with_a_key_takes_effect_once(tmp_path: Path) -> None:
    body = {"preset": "quickstart", "config": {"training": {"max_steps": 3}}}
    headers = {"Idempotency-Key": "tonight"}
    with serving(tmp_path) as client:
        first, again = (client.post("/v1/runs", json=body, headers=headers) for _ in range(2))
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        other = client.post("/v1/runs", json={**body, "name": "other"}, headers=headers)
        assert (other.status_code, other.json()["type"]) == (422, "/v1/problems/idempotency_key_reused")
        assert len(client.get("/v1/runs").json()["data"]) == 1
        run_id = first.json()["id"]
        wait_for(client, run_id, "completed")
    with serving(tmp_path) as client:  # known after a restart too
        assert client.post("/v1/runs", json=body, headers=headers).json()["id"] == run_id


def test_a_repeated_command_with_a_key_does_not_undo_what_came_after(tmp_path: Path) -> None:
    """pause, resume, and the first pause's retry: the run goes on."""
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        training(client, run_id)
        key = {"Idempotency-Key": "p1"}
        assert client.post(f"/v1/runs/{run_id}/pause", headers=key).status_code == 202
        wait_for(client, run_id, "paused")
        client.post(f"/v1/runs/{run_id}/resume")
        assert client.post(f"/v1/runs/{run_id}/pause", headers=key).status_code == 200
        wait_for(client, run_id, "completed")


def test_a_refused_request_does_not_use_up_its_key(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        key = {"Idempotency-Key": "k"}
        assert client.post("/v1/runs", json={"preset": "nothing"}, headers=key).status_code == 422
        assert (
            client.post("/v1/runs", json={"preset": "quickstart", "config": {"training": {"max_steps": 2}}}, headers=key).status_code == 201
        )


# --- edit, delete, pin ------------------------------------------------------------------------------------------


def test_an_edit_goes_by_the_version_that_was_seen(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        path = f"/v1/runs/{launch(client, steps=2)}"
        seen = client.get(path)
        tag = seen.headers["ETag"]
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
        edited = client.patch(path, json={"notes": "try again", "tags": ["x"]}, headers={"If-Match": tag})
        assert (edited.json()["notes"], edited.json()["tags"], edited.json()["name"]) == ("try again", ["x"], seen.json()["name"])
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 200
        stale = client.patch(path, json={"notes": "no"}, headers={"If-Match": tag})
        assert (stale.status_code, stale.json()["type"]) == (412, "/v1/problems/version_mismatch")
        assert client.patch(path, json={"notes": None}, headers={"If-Match": "*"}).json()["notes"] is None
        assert client.patch(path, json={"name": None}).status_code == 422
        assert client.patch(path, json={"state": "completed"}).status_code == 422
        assert client.get("/v1/runs", params={"tag": "x"}).json()["data"][0]["id"] == seen.json()["id"]
        assert client.get("/v1/runs", params={"tag": "y"}).json()["data"] == []


def test_a_run_at_rest_is_deleted_with_all_it_left(tmp_path: Path) -> None:
    with serving(tmp_path, *SLOW) as client:
        run_id, other = launch(client, steps=10_000), launch(client, steps=2)
        wait_for(client, run_id, "running")
        assert client.delete(f"/v1/runs/{run_id}").json()["type"] == "/v1/problems/run_active"
        assert client.delete(f"/v1/runs/{other}").status_code == 409  # it waits
        client.post(f"/v1/runs/{run_id}/stop")
        wait_for(client, run_id, "stopped")
        assert client.delete(f"/v1/runs/{run_id}", headers={"If-Match": '"1.x"'}).status_code == 412
        assert client.delete(f"/v1/runs/{run_id}").status_code == 204
        assert client.get(f"/v1/runs/{run_id}").status_code == 404
        assert not (tmp_path / "runs" / run_id).exists()
        assert not list((tmp_path / "runs").glob(".*deleted"))
        wait_for(client, other, "completed")
        assert steps_of(client, other) == [1, 2]


def has_no_space(_: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise OperationalError("commit", {}, error)


@pytest.mark.parametrize("what", ["run", "checkpoint"])
def test_what_could_not_be_deleted_is_all_there(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the database refuses, after the files were moved aside."""
    with serving(tmp_path) as client:
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
        (checkpoint,) = client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]
        path = f"/v1/runs/{run_id}" if what == "run" else f"/v1/checkpoints/{checkpoint['id']}"
        with monkeypatch.context() as patch:
            patch.setattr(engine.Session, "commit", has_no_space)
            assert client.delete(path).status_code == 507
        assert client.post(f"/v1/checkpoints/{checkpoint['id']}/verify").json()["ok"]
        assert client.delete(path).status_code == 204
        assert not list((tmp_path / "runs").rglob("*.deleted"))


def test_what_a_killed_server_was_deleting_goes_or_comes_back(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
    run = RunDir(tmp_path / "runs" / run_id)
    run.checkpoint(5).rename(run.checkpoints / ".step_000005.deleted")
    (run.checkpoints / ".step_000003.deleted").mkdir()
    run.path.rename(tmp_path / "runs" / f".{run_id}.deleted")
    gone = tmp_path / "runs" / ".run_gone.deleted"
    gone.mkdir()
    with serving(tmp_path) as client:
        (checkpoint,) = client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]
        assert client.post(f"/v1/checkpoints/{checkpoint['id']}/verify").json()["ok"]
    assert not list((tmp_path / "runs").rglob("*.deleted"))


def test_a_number_is_not_given_twice_though_the_run_that_had_it_is_gone(tmp_path: Path) -> None:
    """A client that has read to a cursor would take what has an older number for seen."""
    with serving(tmp_path) as client:
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
        newest = client.get(f"/v1/runs/{run_id}/events").json()["data"][-1]["seq"]
        client.delete(f"/v1/runs/{run_id}")
    with serving(tmp_path) as client:
        run_id = launch(client, steps=5)
        assert client.get(f"/v1/runs/{run_id}/events").json()["data"][0]["seq"] > newest


def test_a_checkpoint_is_fetched_verified_pinned_and_deleted(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
        (checkpoint,) = client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]
        path = f"/v1/checkpoints/{checkpoint['id']}"
        assert client.get(path).json() == checkpoint
        file = RunDir(tmp_path / "runs" / run_id).checkpoint(5) / "state.json"
        whole = client.get(f"{path}/download", params={"file": "state.json"})
        assert whole.content == file.read_bytes()
        part = client.get(f"{path}/download", params={"file": "state.json"}, headers={"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, file.read_bytes()[2:6])
        beyond = client.get(f"{path}/download", params={"file": "state.json"}, headers={"Range": "bytes=1000000-"})
        assert (beyond.status_code, beyond.json()["type"]) == (416, "/v1/problems/range_not_satisfiable")
        assert beyond.headers["content-range"] == f"bytes */{len(file.read_bytes())}"
        for wrong in ("bytes=7-2", "lines=1-2", "2-5", "bytes=-"):
            refused = client.get(f"{path}/download", params={"file": "state.json"}, headers={"Range": wrong})
            assert (refused.status_code, refused.json()["type"]) == (400, "/v1/problems/bad_range")
            assert refused.headers["content-type"] == "application/problem+json"
        assert client.get(f"{path}/download", params={"file": "../../config.json"}).status_code == 422
        assert client.get(f"{path}/download").status_code == 404  # the fake worker saves no weights
        assert client.post(f"{path}/verify").json() == {"ok": True, "detail": None}
        file.write_text("{}")
        assert client.post(f"{path}/verify").json()["ok"] is False
        assert client.patch(path, json={"pinned": True}).json()["is_pinned"]
        assert RunDir(tmp_path / "runs" / run_id).pinned() == [5]
        assert client.delete(path).status_code == 409
        client.patch(path, json={"pinned": False})
        assert client.delete(path).status_code == 204
        assert client.get(path).status_code == 404
        assert not file.parent.exists()
