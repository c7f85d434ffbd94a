"""The mirror online, by the real wandb against tests/fake_wandb.py: what a server is told, and when there is none."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cognate.events import Kind
from cognate.metrics import KEYS
from cognate.offline import compare
from cognate.rundir import RunDir, read_json
from tests.fake_wandb import FakeWandb
from tests.service import until
from tests.test_mirror import COMMAND, attempt, mirrored, new_run, steps_in, values_of

KEY = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.slow


@pytest.fixture
def server() -> Iterator[FakeWandb]:
    fake = FakeWandb()
    yield fake
    fake.close()


def start(server: FakeWandb, run: RunDir, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    return subprocess.Popen([*COMMAND, "--online", str(run.path)], stdin=stdin, stderr=subprocess.PIPE, text=True, env=environment)


def steps(server: FakeWandb) -> list[int]:
    return [row["train/step"] for row in server.rows()]


def test_the_server_is_told_every_step_once_and_a_resumed_run_goes_on(tmp_path: Path, server: FakeWandb) -> None:
    run = new_run(tmp_path)
    attempt(run, range(61), None)
    with start(server, run) as mirror:
        assert (mirror.wait(), server.exit_codes) == (0, [0])
    assert steps(server) == list(range(61))
    attempt(run, range(51, 101), Kind.FINISHED)  # resumed from a checkpoint at step 50
    with start(server, run) as mirror:
        assert mirror.wait() == 0
    assert steps(server) == list(range(101))
    assert server.overwritten == 0
    assert {upsert["name"] for upsert in server.upserts} == {"run_1"}
    for step in (0, 55, 100):
        row = server.rows()[step]
        sent = {key: value for key, value in row.items() if key in KEYS}
        assert sent == pytest.approx(values_of(step, 2 if step > 60 else 1))
    assert run.is_mirrored()
    assert steps_in(run) == []


def test_a_mirror_killed_at_work_leaves_the_next_one_what_the_server_has_not(tmp_path: Path, server: FakeWandb) -> None:
    """The server's own last step decides, not a note of ours that may be older or newer."""
    run = new_run(tmp_path)
    attempt(run, range(301), None)
    server.takes = 123
    with start(server, run, subprocess.PIPE) as mirror:
        until(lambda: server.history, 60)
        mirror.kill()
    assert steps(server) == list(range(123))
    server.takes = 1 << 30
    attempt(run, range(301, 401), Kind.FINISHED)
    with start(server, run) as mirror:
        assert mirror.wait() == 0
    assert steps(server) == list(range(401))
    assert server.overwritten == 0


def test_a_run_is_followed_until_standard_input_closes(tmp_path: Path, server: FakeWandb) -> None:
    run = new_run(tmp_path)
    attempt(run, range(11), None)
    with start(server, run, subprocess.PIPE) as mirror:
        until(lambda: len(server.history) >= 10, 60)
        assert mirror.poll() is None
        attempt(run, range(11, 21), Kind.FAILED, reason="oom_cuda", detail="no memory")
        assert mirror.stdin is not None
        mirror.stdin.close()
        assert mirror.wait() == 0
    assert steps(server) == list(range(21))
    assert server.exit_codes == [1]


def test_wandb_sync_sends_each_step_once(tmp_path: Path, server: FakeWandb) -> None:
    """After every pause, and at the end all that is there: what was sent is marked, and not sent again."""
    run = new_run(tmp_path)
    for told, ending in ((range(61), None), (range(51, 101), Kind.FINISHED)):
        attempt(run, told, ending)
        command = [sys.executable, "-m", "wandb", "sync", *map(str, mirrored(run).folders)]
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_CONFIG_DIR": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert steps(server) == list(range(told.stop))
    assert {upsert["name"] for upsert in server.upserts} == {"run_1"}


def test_a_run_that_was_begun_one_way_is_not_told_again_the_other(tmp_path: Path, server: FakeWandb) -> None:
    """The files would be appended to what the server has, and the server knows nothing of the files."""
    run = new_run(tmp_path)
    attempt(run, range(11), None)
    with start(server, run) as mirror:
        assert mirror.wait() == 0
    attempt(run, range(11, 21), Kind.FINISHED)
    done = subprocess.run([*COMMAND, str(run.path)], capture_output=True, text=True)
    assert (done.returncode, steps_in(run)) == (1, [])
    assert "go on online" in done.stderr


def test_a_run_that_is_followed_online_is_refused_offline_at_once(tmp_path: Path, server: FakeWandb) -> None:
    """Waiting for the one that follows would be waiting for the run's end."""
    run = new_run(tmp_path)
    attempt(run, range(11), None)
    with start(server, run, subprocess.PIPE) as mirror:
        until(run.mirror.exists, 60)
        done = subprocess.run([*COMMAND, str(run.path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, mirror.poll()) == (1, None)
        assert "go on online" in done.stderr
        mirror.kill()


def test_where_the_server_refuses_a_run_at_rest_is_written_offline(tmp_path: Path, server: FakeWandb) -> None:
    run = new_run(tmp_path)
    attempt(run, range(31), Kind.FINISHED)
    server.refuses = 401
    with start(server, run) as mirror:
        assert mirror.wait() == 0
    assert compare(run).is_complete
    remark = read_json(run.mirror)["remark"]
    assert "401" in remark
    assert "wandb sync" in remark


def test_where_the_server_refuses_a_run_that_it_knows_nothing_is_written(tmp_path: Path, server: FakeWandb) -> None:
    run = new_run(tmp_path)
    attempt(run, range(31), None)
    with start(server, run) as mirror:
        assert mirror.wait() == 0
    attempt(run, range(31, 41), Kind.FINISHED)
    server.refuses = 401
    with start(server, run) as mirror:
        assert mirror.wait() == 1
        assert mirror.stderr is not None
        assert "401" in mirror.stderr.read().splitlines()[-1]
    assert steps_in(run) == []
    assert not run.is_mirrored()
    server.refuses = None
    with start(server, run) as mirror:
        assert mirror.wait() == 0
    assert steps(server) == list(range(41))


def test_where_the_server_refuses_a_run_at_work_is_tried_again_later(tmp_path: Path, server: FakeWandb) -> None:
    run = new_run(tmp_path)
    attempt(run, range(31), None)
    server.refuses = 401
    with start(server, run, subprocess.PIPE) as mirror:
        assert mirror.wait() == 1
        assert mirror.stderr is not None
        assert "W&B was not reached" in mirror.stderr.read().splitlines()[-1]
    assert not run.is_mirrored()


def test_the_key_goes_to_the_server_and_into_no_file(tmp_path: Path, server: FakeWandb) -> None:
    run = new_run(tmp_path)
    attempt(run, range(31), Kind.FINISHED)
    with start(server, run) as mirror:
        assert mirror.wait() == 0
        assert mirror.stderr is not None
        assert KEY not in mirror.stderr.read()
    sent = base64.b64encode(f"api:{KEY}".encode())
    assert any(sent.decode() in header for header in server.keys)
    found = [path for path in tmp_path.rglob("*") if path.is_file() and any(key in path.read_bytes() for key in (KEY.encode(), sent))]
    assert found == []
