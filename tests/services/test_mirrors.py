"""Mirrors as the service runs them: when, with what, and never to the harm of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.testclient import TestClient

from app.services import mirrors
from app.services.mirrors import environment, retry_after
from cognate.offline import compare
from cognate.rundir import RunDir, read_json
from cognate.wandb_mode import Mode, mode_of, seen_here
from tests.service import HOLD, launch, serving, until, wait_for

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("limit", "wanted", "has_key", "begun", "mode"),
    [
        ("auto", "auto", False, None, "offline"),
        ("auto", "auto", True, None, "online"),
        ("auto", "online", True, None, "online"),
        ("auto", "online", False, None, "offline"),
        ("auto", "offline", True, None, "offline"),
        ("auto", "off", True, None, "off"),
        ("offline", "auto", True, None, "offline"),
        ("offline", "online", True, None, "offline"),
        ("offline", "off", True, None, "off"),
        ("off", "online", True, None, "off"),
        ("auto", "auto", True, "offline", "offline"),
        ("auto", "auto", True, "online", "online"),
    ],
)
def test_a_run_gets_what_it_asks_for_up_to_what_the_service_allows(
    limit: str, wanted: str, has_key: bool, begun: Mode | None, mode: Mode
) -> None:
    assert mode_of(limit, wanted, has_key, begun) == mode


def test_what_is_seen_names_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert seen_here("auto", "auto") == {"installed": True, "key": True, "wanted": "auto", "mode": "online"}
    monkeypatch.delenv("WANDB_API_KEY")
    assert seen_here("auto", "online") == {"installed": True, "key": False, "wanted": "online", "mode": "offline"}


def test_the_key_is_for_mirrors_that_go_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("COGNATE_TOKEN", "secret")
    assert environment("online")["WANDB_API_KEY"] == KEY
    assert "WANDB_API_KEY" not in environment("offline")
    assert "COGNATE_TOKEN" not in environment("online")


def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As compose passes on a variable that is not set."""
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert seen_here("auto", "online") == {"installed": True, "key": False, "wanted": "online", "mode": "offline"}


def test_a_mirror_that_fails_for_weeks_is_tried_once_an_hour() -> None:
    assert [retry_after(failures) for failures in (0, 1, 2, 4, 1000)] == [30, 120, 480, 3600, 3600]


def fake_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """In the mirror's place a script of ours; the file that it may leave its arguments in."""
    told = tmp_path / "told.jsonl"
    prelude = f"import json, os, sys, time\nfrom pathlib import Path\ntold = Path({str(told)!r})\nrun = Path(sys.argv[-1])\n"
    monkeypatch.setattr(mirrors, "MIRROR", (sys.executable, "-c", prelude + script))
    monkeypatch.setattr(mirrors, "LOOK_EVERY_S", 0.05)
    return told


TELL = """
from cognate.rundir import RunDir, write_json
with told.open("a") as file:
    print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid()}), file=file)
"""
DONE = """
folder = RunDir(run)
mode = "online" if "--online" in sys.argv else "offline"
write_json(folder.mirror, {"journal_sizes": folder.journal_sizes(), "remark": None, "mode": mode})
"""


def lines(told: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def events(client: TestClient, run_id: str) -> list[str]:
    found = client.get(f"/v1/runs/{run_id}/events", params={"limit": 200}).json()["data"]
    return [event["data"]["message"] for event in found if event["kind"] == "mirror_failed"]


# --- offline: whenever a run comes to rest -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_has_its_offline_file_after_a_pause_and_after_its_end(tmp_path: Path) -> None:
    with serving(tmp_path, *HOLD, wandb="auto") as client:
        run_id = launch(client, steps=60, name="first", tags=["a"])
        run = RunDir(tmp_path / "runs" / run_id)
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["progress"])
        client.post(f"/v1/runs/{run_id}/pause")
        wait_for(client, run_id, "paused")
        until(run.is_mirrored, 120)  # it gives way to whatever else the machine does
        assert compare(run).is_complete
        client.post(f"/v1/runs/{run_id}/resume")
        wait_for(client, run_id, "completed")
        until(run.is_mirrored, 120)
        assert compare(run).is_complete
        noted = read_json(run.mirror)
        assert noted["about"] == {"name": "first", "tags": ["a"], "group": None}
        assert events(client, run_id) == []


def test_offline_nothing_runs_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores are the quickstart's; the journal keeps what a mirror has not read yet."""
    told = fake_mirror(tmp_path, monkeypatch, TELL + DONE)
    with serving(tmp_path, "--step-seconds", "0.01", wandb="auto") as client:
        run_id = launch(client, steps=10_000)
        until(lambda: client.get(f"/v1/runs/{run_id}").json()["progress"])
        assert lines(told) == []
        client.post(f"/v1/runs/{run_id}/stop")
        wait_for(client, run_id, "stopped")
        until(RunDir(tmp_path / "runs" / run_id).is_mirrored)
        assert len(lines(told)) == 1


def test_a_mirror_that_was_missed_is_made_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL + DONE)
    with serving(tmp_path) as client:  # COGNATE_WANDB is off
        run_id = launch(client)
        wait_for(client, run_id, "completed")
    assert lines(told) == []
    with serving(tmp_path, wandb="auto"):
        until(RunDir(tmp_path / "runs" / run_id).is_mirrored)
    with serving(tmp_path, wandb="auto") as client:
        other = launch(client)
        wait_for(client, other, "completed")
        until(RunDir(tmp_path / "runs" / other).is_mirrored)
    assert [Path(line["arguments"][-1]).name for line in lines(told)] == [run_id, other]  # and none twice


def test_a_run_that_wants_none_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL + DONE)
    with serving(tmp_path, wandb="auto") as client:
        without = launch(client, config={"training": {"max_steps": 5}, "tracking": {"wandb": "off"}})
        wait_for(client, without, "completed")
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
        until(RunDir(tmp_path / "runs" / run_id).is_mirrored)
        assert [Path(line["arguments"][-1]).name for line in lines(told)] == [run_id]


# --- a mirror that fails -----------------------------------------------------------------------------------


def test_a_mirror_that_fails_is_an_event_and_changes_nothing_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL + "sys.exit('the disk is on fire')")
    monkeypatch.setattr(mirrors, "RETRY_AFTER_S", 0.1)
    with serving(tmp_path, wandb="auto") as client:
        run_id = launch(client)
        wait_for(client, run_id, "completed")
        until(lambda: len(lines(told)) >= 3)  # tried again
        assert events(client, run_id) == ["the disk is on fire"]  # and told once
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "completed"


def test_a_mirror_that_fails_waits_longer_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL.replace("os.getpid()", "time.monotonic()") + "sys.exit('no')")
    monkeypatch.setattr(mirrors, "RETRY_AFTER_S", 0.2)
    with serving(tmp_path, wandb="auto") as client:
        wait_for(client, launch(client), "completed")
        until(lambda: len(lines(told)) >= 3)
    first, second, third = [line["pid"] for line in lines(told)][:3]
    assert second - first >= 0.2
    assert third - second >= 0.8


def test_a_run_that_asks_for_online_without_a_key_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never done other than asked without a word."""
    fake_mirror(tmp_path, monkeypatch, TELL + DONE)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with serving(tmp_path, wandb="auto") as client:
        run_id = launch(client, config={"training": {"max_steps": 5}, "tracking": {"wandb": "online"}})
        wait_for(client, run_id, "completed")
        (message,) = until(lambda: events(client, run_id))
        assert "no WANDB_API_KEY" in message


# --- online: beside the run --------------------------------------------------------------------------------

FOLLOW = """
while data := sys.stdin.read():
    pass
"""


def test_online_a_mirror_follows_its_run_until_it_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL + FOLLOW + DONE)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving(tmp_path, *HOLD, wandb="auto") as client:
        run_id = launch(client, steps=100, tags=["x"], name="-n")
        until(lambda: lines(told))
        assert client.get(f"/v1/runs/{run_id}").json()["state"] in ("starting", "running")
        client.post(f"/v1/runs/{run_id}/pause")
        wait_for(client, run_id, "paused")
        until(RunDir(tmp_path / "runs" / run_id).is_mirrored)
        client.post(f"/v1/runs/{run_id}/resume")
        wait_for(client, run_id, "completed")
        until(RunDir(tmp_path / "runs" / run_id).is_mirrored)
    first, second = lines(told)
    assert first["arguments"] == second["arguments"] == ["--online", "--name=-n", "--tag=x", str(tmp_path / "runs" / run_id)]


def test_a_mirror_that_is_killed_is_started_again_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL + FOLLOW + DONE)
    monkeypatch.setattr(mirrors, "RETRY_AFTER_S", 0.1)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving(tmp_path, "--step-seconds", "0.02", wandb="auto") as client:
        run_id = launch(client, steps=10_000)
        until(lambda: lines(told))
        psutil.Process(lines(told)[0]["pid"]).kill()
        until(lambda: len(lines(told)) == 2)
        client.post(f"/v1/runs/{run_id}/stop")
        assert wait_for(client, run_id, "stopped")["attempt"] == 1
        until(RunDir(tmp_path / "runs" / run_id).is_mirrored)


def test_the_key_is_in_no_file_and_in_no_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = fake_mirror(tmp_path, monkeypatch, TELL.replace("dict(os.environ)", "'WANDB_API_KEY' in os.environ") + FOLLOW + DONE)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving(tmp_path / "home", "--step-seconds", "0.02", wandb="auto", spare=True) as client:
        run_id = launch(client, steps=10_000)
        run = RunDir(tmp_path / "home" / "runs" / run_id)
        until(lambda: run.attempt(1).started.exists() and lines(told))
        assert lines(told)[0]["environment"] is True
        started = read_json(run.attempt(1).started)
        for pid in (started["pid"], started["shim_pid"]):
            assert KEY not in str(psutil.Process(pid).environ())
        client.post(f"/v1/runs/{run_id}/stop")
        wait_for(client, run_id, "stopped")
        until(run.is_mirrored)
        assert KEY not in client.get(f"/v1/runs/{run_id}").text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "home" / "cognate.db" in files
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.parametrize("way", ["delete", "shutdown"])
def test_no_mirror_outlives_its_run_or_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Not even one that hears nothing. Nothing is lost: it is made anew."""
    told = fake_mirror(tmp_path, monkeypatch, TELL + "time.sleep(3600)")
    monkeypatch.setattr(mirrors, "SHUTDOWN_GRACE_S", 0.2)
    with serving(tmp_path, wandb="auto") as client:
        run_id = launch(client)
        wait_for(client, run_id, "completed")
        (mirror,) = until(lambda: lines(told))
        if way == "delete":
            assert client.delete(f"/v1/runs/{run_id}").status_code == 204
            assert not psutil.pid_exists(mirror["pid"])
            assert list((tmp_path / "runs").iterdir()) == []
    assert not psutil.pid_exists(mirror["pid"])


def test_a_mirror_hears_that_its_server_was_killed(tmp_path: Path) -> None:
    """The kernel closes what the server held open; so a mirror ends by itself, and the next server starts another."""
    read, write = os.pipe()
    os.close(write)
    began = time.monotonic()
    script = "import cognate.mirror as m; print(m._closes(30.0))"
    done = subprocess.run([sys.executable, "-c", script], stdin=read, capture_output=True, text=True)
    os.close(read)
    assert done.stdout == "True\n"
    assert time.monotonic() - began < 25
