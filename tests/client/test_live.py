"""The client and the service, over a real socket: a run from its launch to its end."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from app.client import stream
from app.client.api import Api, ExitCode
from app.client.live import WATCHED
from tests.client.conftest import cognate

COMMAND = [str(Path(sys.executable).with_name("cognate")), "runs"]


def test_a_run_is_launched_paused_resumed_and_watched_to_its_end(live: str) -> None:
    run = json.loads(cognate("launch", "quickstart", "--set=training.max_steps=60", "--name=first", "--json", COGNATE_URL=live).stdout)
    paused = cognate("pause", "first", "--wait", COGNATE_URL=live)
    assert (paused.exit_code, paused.stdout) == (ExitCode.OK, "first  paused: user_pause\n")
    assert "paused" in cognate("list", "--state=paused", COGNATE_URL=live).stdout
    assert cognate("resume", run["id"][-8:], COGNATE_URL=live).exit_code == ExitCode.OK
    watched = cognate("watch", "first", "--after=start", "--json", COGNATE_URL=live)
    assert watched.exit_code == ExitCode.OK
    lines = [json.loads(line) for line in watched.stdout.splitlines()]
    seqs = [int(line["cursor"].partition(".")[2]) for line in lines if "cursor" in line]
    assert seqs == sorted(set(seqs))
    assert [line["step"] for line in lines if line["type"] == "row"][-1] == 60
    assert [line["data"]["state"] for line in lines if line.get("kind") == "state"][-1] == "completed"
    again = cognate("pause", "first", COGNATE_URL=live)
    assert again.exit_code == ExitCode.REFUSED
    assert "cannot pause" in again.stderr
    shown = cognate("show", "first", COGNATE_URL=live).stdout
    assert [line.split() for line in shown.splitlines() if "max_steps" in line] == [["training.max_steps", "60", "200"]]


def test_a_watch_without_a_terminal_is_a_line_a_row(live: str) -> None:
    watched = cognate("launch", "quickstart", "--set=training.max_steps=20", "--watch", COGNATE_URL=live)
    assert watched.exit_code == ExitCode.OK
    assert "\x1b" not in watched.stdout
    lines = watched.stdout.splitlines()
    rows = [line.split()[1] for line in lines if line.startswith("step")]
    assert rows[-1] == "20/20"
    assert len(rows) == len(set(rows))
    assert "completed" in lines[-1]
    assert "completed" in cognate("watch", lines[0].split()[0], COGNATE_URL=live).stdout


def test_an_evaluation_is_asked_for_waited_for_and_shown_again(live: str) -> None:
    cognate("launch", "quickstart", "--set=training.max_steps=20", "--name=measured", "--watch", COGNATE_URL=live)
    told = cognate("evaluate", "measured", "--limit=4", "--vote=3", "--wait", COGNATE_URL=live)
    assert told.exit_code == ExitCode.OK, told.output
    assert "exact_match" in told.stdout
    assert cognate("evaluations", "measured", COGNATE_URL=live).stdout == told.stdout
    (job,) = json.loads(cognate("evaluations", "measured", "--json", COGNATE_URL=live).stdout)["data"]
    assert (job["spec"]["limit"], job["spec"]["vote"]) == (4, 3)


def test_a_run_that_is_stopped_ends_its_watch_with_1(live: str) -> None:
    cognate("launch", "quickstart", "--set=training.max_steps=5000", "--name=long", COGNATE_URL=live)
    with subprocess.Popen([*COMMAND, "watch", "long", "--url", live], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        watching.stdout.readline()
        assert cognate("stop", "long", "--wait", COGNATE_URL=live).exit_code == ExitCode.OK
        last = watching.stdout.readlines()[-1]
    assert watching.returncode == ExitCode.ENDED_OTHERWISE
    assert "stopped: user_stop" in last


def test_ctrl_c_leaves_the_run_running_and_says_so(live: str) -> None:
    cognate("launch", "quickstart", "--set=training.max_steps=5000", "--name=left", COGNATE_URL=live)
    command = [*COMMAND, "watch", "left", "--url", live, "--after", "start"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        while not watching.stdout.readline().startswith("step"):
            pass
        watching.send_signal(signal.SIGINT)
        said = watching.stderr.read()
    assert watching.returncode == ExitCode.CTRL_C
    assert said.startswith("left goes on; come back with: cognate runs watch ")
    assert json.loads(cognate("list", "--state=running", "--json", COGNATE_URL=live).stdout)["data"][0]["name"] == "left"
    assert cognate("kill", "left", "--wait", COGNATE_URL=live).stdout == "left  stopped: user_kill\n"


def test_a_stream_goes_on_where_it_was_cut_off(live: str) -> None:
    """Each connection is closed after a few frames; no row is told twice, and none is missing."""
    run_id = httpx.post(f"{live}/v1/runs", json={"preset": "quickstart", "config": {"training": {"max_steps": 40}}}).json()["id"]
    with Api(live, None) as api:
        whole = stream.connecting(api, run_id, WATCHED)

        class Cut:
            def __init__(self, cursor: str) -> None:
                self._socket = whole(cursor)

            def __enter__(self):  # type: ignore[no-untyped-def]
                socket = self._socket.__enter__()
                return (text for text, _ in zip(socket, range(5), strict=False))

            def __exit__(self, *error: object) -> None:
                self._socket.__exit__(None, None, None)

        frames = stream.follow(Cut, "start", sleep=lambda _: None)
        told = [frame for _, frame in stream.until_over(frames, stream.is_last_state(api, run_id))]
        steps = [row["step"] for frame in told if frame["type"] == "batch" for row in stream.rows(frame)]
        assert any(frame["type"] == "lost" for frame in told)
        assert steps == api.get(f"/v1/runs/{run_id}/metrics", keys="loss")["columns"]["step"]
