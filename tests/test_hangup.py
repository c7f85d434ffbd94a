"""A terminal that is closed, and a machine that is shut down: what runs is saved, as by Ctrl-C.

The kernel tells the processes of a closed terminal by SIGHUP, and whatever they write to it fails from then on.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cognate import cli
from cognate.events import Kind
from cognate.rundir import AttemptDir, Places, RunDir, read_journal
from cognate.visible import Screen
from tests.service import FAKE_WORKER, Server, launch, until, wait_for
from tests.test_cli import SMALL
from tests.training.runs import new_run, tiny

# `python -m app` with fake workers.
SERVE = f"""
import sys
from functools import partial
from app import main
from app.cli import serve_main
main.LocalExecutor = partial(main.LocalExecutor, worker=[sys.executable, {str(FAKE_WORKER)!r}, "--step-seconds", "0.01"])
serve_main()
"""


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Our end, which may be closed, and the end of a process."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(theirs)


def owning(theirs: int) -> None:
    """In the child: the terminal is its own, and its end tells it."""
    fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)


@contextmanager
def serving(home: Path, *, theirs: int | None = None, ignoring: bool = False) -> Iterator[Server]:
    server = Server(home, COGNATE_DATA_DIR="", COGNATE_SPARE_WORKER="false")

    def prepare() -> None:
        if theirs is not None:
            owning(theirs)
        if ignoring:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    where = {"stdin": theirs, "stdout": theirs, "stderr": theirs} if theirs is not None else {"stdout": subprocess.DEVNULL}
    server.process = subprocess.Popen(
        [sys.executable, "-c", SERVE, "--no-quickstart"],
        env=server.environment,
        start_new_session=True,
        preexec_fn=prepare,
        **where,
    )
    until(server.answers)
    try:
        yield server
        server.interrupt()
    finally:
        server.client.close()
        server.process.kill()


def test_a_closed_terminal_saves_what_the_service_runs(tmp_path: Path) -> None:
    """It ended at once, and its runs were left to be found without it."""
    with terminal() as (ours, theirs), serving(tmp_path / "home", theirs=theirs) as server:
        assert server.process is not None
        run_id = launch(server.client, steps=1_000_000)
        wait_for(server.client, run_id, "running")
        os.close(ours)
        assert server.process.wait(60) == -signal.SIGTERM
        assert RunDir(server.home / "runs" / run_id).complete_checkpoints()
        server.start("--no-quickstart", launcher=("-c", SERVE))
        wait_for(server.client, run_id, "running")
        server.client.post(f"/v1/runs/{run_id}/kill")
        wait_for(server.client, run_id, "stopped")
        told = server.client.get(f"/v1/runs/{run_id}/events?kind=state").json()["data"]
        assert "shutdown" in [event["data"]["reason"] for event in told]


def test_under_nohup_the_service_outlives_its_terminal(tmp_path: Path) -> None:
    with serving(tmp_path / "home", ignoring=True) as server:
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        assert server.client.get("/healthz").status_code == 200
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert int(status.partition("SigIgn:")[2].split()[0], 16) & 1 << signal.SIGHUP - 1


SETTINGS = [setting for setting in SMALL if "max_steps" not in setting]
TRAIN = [sys.executable, "-m", "cognate", "train", "quickstart", *SETTINGS, "--set=training.max_steps=1000000", "--output=out"]


def began(folder: Path) -> AttemptDir | None:
    """The attempt, once steps are done; the first row is of step 0, before which there is nothing to save."""
    for path in folder.glob("out/*"):
        for attempt in RunDir(path).attempts():
            entries = [entry for entry, _ in read_journal(attempt.journal, 0, 1 << 20)]
            if any(getattr(entry, "kind", None) is Kind.METRICS and entry.data["step"] for entry in entries):
                return attempt
    return None


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda told: told.name)
def test_training_is_saved_whatever_ends_it(tmp_path: Path, told: signal.Signals) -> None:
    process = subprocess.Popen(TRAIN, cwd=tmp_path)
    attempt = until(lambda: began(tmp_path), 60)
    process.send_signal(told)
    assert process.wait(60) == 130
    assert attempt.run.complete_checkpoints()


class Interrupting(io.RawIOBase):
    """A terminal at which Ctrl-C is pressed while its second line is being written."""

    def __init__(self) -> None:
        self.lines = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.lines += 1
        if self.lines == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return len(data)


def test_training_is_saved_when_it_was_just_saying_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler, too, has something to say, and a buffer takes nothing while it is being written."""
    run = new_run(tmp_path / "run", tiny(training={"max_steps": 100}))
    monkeypatch.setattr(cli, "console", Screen(file=io.TextIOWrapper(io.BufferedWriter(Interrupting()))))
    assert cli._attempt(run, Places(None, None)) is Kind.PAUSED


def test_training_is_saved_when_its_terminal_is_closed(tmp_path: Path) -> None:
    with terminal() as (ours, theirs):
        process = subprocess.Popen(
            TRAIN,
            cwd=tmp_path,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: owning(theirs),
        )
        attempt = until(lambda: began(tmp_path), 60)
        os.close(ours)
        process.wait(60)
    assert any(getattr(entry, "kind", None) is Kind.PAUSED for entry, _ in read_journal(attempt.journal, 0, 1 << 24))
    assert attempt.run.complete_checkpoints()
