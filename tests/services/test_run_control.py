"""Runs through the whole service: REST, supervisor, shim, a worker process, its journal, the database.

The worker is tests/fake_worker.py, so that each test is about control and takes about a second.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pynvml
import pytest

from app.executors.local import LocalExecutor
from cognate.rundir import RunDir, lease_is_free, read_json
from tests.fake_nvml import fake_gpu
from tests.service import HOLD, launch, serving, steps_of, until, wait_for


def processes_naming(folder: Path) -> list[list[str]]:
    """Command lines of the processes that were given a path in `folder`: shims, workers, and what they left."""
    found = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return [command for command in found if any(str(folder) in word for word in command)]


def test_a_run_trains_to_completed(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=20)
        run = wait_for(client, run_id, "completed")
        assert run["progress"]["step"] == run["progress"]["total_steps"] == 20
        assert run["progress"]["percent"] == 100
        assert run["metrics"]["loss"] == 0.5
        assert run["allowed_commands"] == []
        assert steps_of(client, run_id) == list(range(1, 21))
        kinds = [event["kind"] for event in client.get(f"/v1/runs/{run_id}/events").json()["data"]]
        assert kinds == ["state", "state", "started", "state", "plan", "phase", "checkpoint", "finished", "state"]


def test_a_pause_ends_the_process_and_a_resume_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        until(lambda: len(steps_of(client, run_id)) > 5)
        attempt = RunDir(tmp_path / "runs" / run_id).attempt(1)
        pid = read_json(attempt.started)["pid"]
        assert client.post(f"/v1/runs/{run_id}/pause").status_code == 202
        run = wait_for(client, run_id, "paused")
        assert run["state_reason"] == "user_pause"
        assert run["allowed_commands"] == ["resume", "stop"]
        assert not psutil.pid_exists(pid)
        assert lease_is_free(attempt)
        (checkpoint,) = client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]
        assert all(len(file["sha256"]) == 64 for file in checkpoint["files"].values())
        assert client.post(f"/v1/runs/{run_id}/pause").status_code == 200  # already in effect
        assert client.post(f"/v1/runs/{run_id}/resume").status_code == 202
        wait_for(client, run_id, "completed")
        assert steps_of(client, run_id, "all") == list(range(1, 61))
        attempts = client.get(f"/v1/runs/{run_id}/attempts").json()["data"]
        assert [attempt["ending"] for attempt in attempts] == ["paused", "finished"]
        assert attempts[1]["resumed_from_step"] == checkpoint["step"]


def test_a_run_is_paused_once_the_gpu_has_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is launched on it next needs that memory."""
    gpu = fake_gpu(monkeypatch, load=None)
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        until(lambda: steps_of(client, run_id))
        attempt = RunDir(tmp_path / "runs" / run_id).attempt(1)
        gpu.holders = [read_json(attempt.started)["pid"]]
        client.post(f"/v1/runs/{run_id}/pause")
        until(lambda: lease_is_free(attempt))
        client.app.state.parts.supervisor.look()  # type: ignore[attr-defined]
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "pausing"
        gpu.holders = []
        wait_for(client, run_id, "paused")


def test_a_stop_saves_and_is_final(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.02") as client:
        run_id = launch(client, steps=500)
        until(lambda: steps_of(client, run_id))
        client.post(f"/v1/runs/{run_id}/stop")
        run = wait_for(client, run_id, "stopped")
        assert (run["state_reason"], run["allowed_commands"]) == ("user_stop", [])
        assert client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]
        answer = client.post(f"/v1/runs/{run_id}/resume")
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["state"] == "stopped"


def test_a_worker_that_does_not_listen_is_killed_when_its_grace_is_over(tmp_path: Path) -> None:
    """Stuck in `stopping` for an hour is what people complain about."""
    with serving(tmp_path, "--fault", "hang@3") as client:
        run_id = launch(client)
        until(lambda: len(steps_of(client, run_id)) == 3)
        client.post(f"/v1/runs/{run_id}/stop", json={"grace_s": 0.2})
        assert wait_for(client, run_id, "stopped")["state_reason"] == "user_stop"


def test_kill_ends_a_hanging_worker_at_once(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "hang@3") as client:
        run_id = launch(client)
        until(lambda: len(steps_of(client, run_id)) == 3)
        client.post(f"/v1/runs/{run_id}/pause")
        assert client.post(f"/v1/runs/{run_id}/kill").status_code == 202
        assert wait_for(client, run_id, "stopped")["state_reason"] == "user_kill"


def test_a_killed_worker_leaves_the_run_interrupted_and_resumable(tmp_path: Path) -> None:
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=80)
        until(lambda: len(steps_of(client, run_id)) > 5)
        os.kill(read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).started)["pid"], 9)
        run = wait_for(client, run_id, "interrupted")
        assert run["state_reason"] == "signal"
        assert "signal 9" in run["state_detail"]
        client.post(f"/v1/runs/{run_id}/resume")
        wait_for(client, run_id, "completed")
        assert steps_of(client, run_id) == list(range(1, 81))  # steps done twice are shown once, from the later attempt


def test_a_killed_shim_takes_its_worker_with_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.05") as client:
        run_id = launch(client, steps=500)
        until(lambda: steps_of(client, run_id))
        started = read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).started)
        os.kill(started["shim_pid"], 9)
        assert wait_for(client, run_id, "interrupted")["state_reason"] == "worker_lost"
        assert not psutil.pid_exists(started["pid"]) or psutil.Process(started["pid"]).status() == psutil.STATUS_ZOMBIE


def test_what_a_worker_leaves_behind_is_killed_with_it(tmp_path: Path) -> None:
    """Grandchildren that keep the GPU are why a stop does not stop."""
    with serving(tmp_path, "--fault", "child@3") as client:
        wait_for(client, launch(client), "completed")
        assert not processes_naming(tmp_path)


@pytest.mark.parametrize(
    ("fault", "state", "reason"),
    [
        ("crash@3", "interrupted", "exit_nonzero"),
        ("error@3", "failed", "worker_error"),
        ("mumble@3", "failed", "worker_error"),
        ("nan@3", "failed", "nonfinite_loss"),
    ],
)
def test_an_ending_has_its_reason(fault: str, state: str, reason: str, tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", fault) as client:
        run = wait_for(client, launch(client), "interrupted", "failed", "completed")
        assert (run["state"], run["state_reason"]) == (state, reason)
        assert run["state_detail"]


def test_nan_is_nan_everywhere_and_never_null(tmp_path: Path) -> None:
    """SQLite turns NaN into NULL and browsers reject it bare."""
    with serving(tmp_path, "--fault", "nan@3") as client:
        run_id = launch(client)
        assert wait_for(client, run_id, "failed")["metrics"]["loss"] == "NaN"
        columns = client.get(f"/v1/runs/{run_id}/metrics", params={"keys": "loss,loss_ce,val_loss"}).json()["columns"]
        assert columns["loss"] == [10.0, 5.0, "NaN"]
        assert columns["loss_ce"] == [9.0, 4.5, 3.0]
        assert columns["val_loss"] == [None, None, None]  # not measured


def test_one_run_at_a_time_on_the_cpu_and_the_others_wait_in_order(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.02") as client:
        first, second, third = (launch(client, steps=steps) for steps in (100_000, 10, 10))
        wait_for(client, first, "running")
        assert client.get(f"/v1/runs/{second}").json()["queue_position"] == 1
        assert client.get(f"/v1/runs/{third}").json()["queue_position"] == 2
        assert client.post(f"/v1/runs/{first}/stop").status_code == 202  # not before the others were seen to wait, however busy the machine
        wait_for(client, third, "completed")
        ended = [client.get(f"/v1/runs/{run_id}").json()["ended_at"] for run_id in (first, second, third)]
        assert ended == sorted(ended)


def test_a_queued_run_can_be_paused_and_stopped_without_ever_starting(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.05") as client:
        launch(client, steps=1000)
        waiting = launch(client)
        assert client.post(f"/v1/runs/{waiting}/pause").json()["state"] == "paused"
        assert client.post(f"/v1/runs/{waiting}/resume").json()["state"] == "queued"
        assert client.post(f"/v1/runs/{waiting}/stop").json()["state"] == "stopped"
        assert client.post(f"/v1/runs/{waiting}/kill").status_code == 200


def test_a_shutdown_pauses_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """Ctrl-C loses nothing and leaves no process."""
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        until(lambda: len(steps_of(client, run_id)) > 5)
        started = read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).started)
    assert not psutil.pid_exists(started["pid"])
    with serving(tmp_path) as client:
        wait_for(client, run_id, "completed")
        assert steps_of(client, run_id, "all") == list(range(1, 61))


def test_a_shutdown_in_the_middle_of_a_launch_leaves_no_process(tmp_path: Path) -> None:
    """The look that launches may be under way when Ctrl-C comes; its worker is paused like any other."""
    for _ in range(5):
        with serving(tmp_path, "--step-seconds", "0.05") as client:
            launch(client, steps=1000)
        assert not processes_naming(tmp_path)


def test_a_second_server_on_the_same_state_is_refused(tmp_path: Path) -> None:
    with (
        serving(tmp_path),
        pytest.raises(RuntimeError, match="another server is using"),
        serving(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({"COGNATE_PORT": "abc"}, "cognate: COGNATE_PORT: Input should be a valid integer"),
        ({"COGNATE_ON_STALL": "restrt"}, "cognate: COGNATE_ON_STALL: Input should be 'warn' or 'restart'"),
        ({"COGNATE_ALLOWED_HOSTS": "foo.example"}, 'cognate: COGNATE_ALLOWED_HOSTS: it must be a list in JSON, such as ["example.org"]'),
        ({"COGNATE_HOME": "/dev/null"}, "cognate: the state folder /dev/null cannot be used: File exists; set COGNATE_HOME to another one"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_mistaken_variable_is_told_in_a_line(variables: dict[str, str], line: str, tmp_path: Path) -> None:
    environment = {**os.environ, "COGNATE_HOME": str(tmp_path), **variables}
    left = subprocess.run([sys.executable, "-m", "app"], env=environment, capture_output=True, text=True, timeout=60)
    assert (left.returncode, left.stdout) == (1, "")
    assert left.stderr.startswith(line)
    assert left.stderr.count("\n") == 1


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").status_code == 200
    except httpx.TransportError:  # it does not listen yet
        return False


def test_a_second_ctrl_c_leaves_no_traceback(tmp_path: Path) -> None:
    environment = {**os.environ, "COGNATE_HOME": str(tmp_path), "COGNATE_PORT": "0", "COGNATE_SPARE_WORKER": "false"}
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--no-quickstart"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        address = re.findall(r"http://\S+", server.stdout.readline())[0]
        try:
            until(lambda: is_ready(address))
            for _ in range(2):
                server.send_signal(signal.SIGINT)
                time.sleep(0.1)
            said, _ = server.communicate(timeout=30)
        finally:
            server.kill()
    assert said.startswith("Cognate: saving what is running")
    assert "Traceback" not in said


def test_a_taken_port_is_told_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "COGNATE_HOME": str(tmp_path), "COGNATE_PORT": str(port)}
        left = subprocess.run([sys.executable, "-m", "app"], env=environment, capture_output=True, text=True, timeout=60)
    assert left.returncode == 1
    assert f"cognate: cannot listen on 127.0.0.1:{port}; set COGNATE_PORT" in left.stderr
    assert "Traceback" not in left.stderr


def test_a_server_that_cannot_read_its_database_says_so_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "cognate.db").write_bytes(bytes(range(256)) * 64)
    environment = os.environ | {"COGNATE_HOME": str(tmp_path), "COGNATE_PORT": "0"}
    left = subprocess.run([sys.executable, "-m", "app"], env=environment, capture_output=True, text=True, timeout=60)
    (line,) = left.stderr.splitlines()
    assert (left.returncode, left.stdout) == (1, "")
    assert line.startswith(f"cognate: {tmp_path}/cognate.db cannot be read (file is not a database)")


def test_a_worker_that_cannot_be_started_fails_the_run_with_the_reason(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.05") as client:
        launch(client, steps=20)
        run_id = launch(client)  # waits in the queue
        (tmp_path / "runs" / run_id / "attempts").write_text("in the way")
        run = wait_for(client, run_id, "failed")
        assert run["state_reason"] == "launch_failed"
        assert client.get(f"/v1/runs/{run_id}/attempts").json()["data"][0]["ending"] == "failed"


def test_a_device_that_is_not_here_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path, cpu_slots=0) as client:
        answer = client.post("/v1/runs", json={"preset": "quickstart", "config": {"training": {"device": "cpu"}}})
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "training.device")


def test_a_shutdown_that_is_cut_short_is_made_good_by_the_next_start(tmp_path: Path) -> None:
    """Ctrl-C, and then the server is killed before it has seen its worker pause."""
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        until(lambda: len(steps_of(client, run_id)) > 5)
        supervisor = client.app.state.parts.supervisor  # type: ignore[attr-defined]
        supervisor._draining = True  # as if this server had not come back to look for what is paused
        supervisor._pause_for_shutdown()
        assert wait_for(client, run_id, "paused")["state_reason"] == "shutdown"
    with serving(tmp_path) as client:
        wait_for(client, run_id, "completed")


def test_only_the_gpus_that_were_granted_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared machine the others belong to somebody else."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 4)
    assert LocalExecutor(None, tmp_path, 1).slots() == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    executor = LocalExecutor(None, tmp_path, 1)
    assert executor.slots() == ["cuda:0", "cuda:1", "cpu"]
    assert [executor.environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in executor.slots()] == ["3", "GPU-abc", ""]


def test_a_worker_sees_only_what_it_needs_of_the_servers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_TOKEN", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "secret" not in LocalExecutor(None, tmp_path, 1).environment("cpu").values()
