"""The log of a service that cannot work: each trouble with its traceback once, then a line a minute, and nothing that did not happen."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.services.troubles import Troubles
from app.store import engine
from cognate.rundir import RunDir, read_json
from tests.service import HOLD, launch, serving, steps_of, until, wait_for


def full(value: int) -> OperationalError:
    return OperationalError("UPDATE run SET updated_at=?", (value,), sqlite3.OperationalError("database or disk is full"))


def test_a_trouble_is_told_with_its_traceback_once_and_then_in_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    troubles = Troubles(lambda: now[0])
    for second in range(150):
        now[0] = second
        troubles.tell("run a: could not be looked after", full(second))
    first, *again = caplog.records
    assert (first.getMessage(), first.exc_info is not None) == ("run a: could not be looked after", True)
    words = "run a: could not be looked after, again: OperationalError: (sqlite3.OperationalError) database or disk is full"
    assert [(record.getMessage(), record.exc_info) for record in again] == [(words, None)] * 2


def test_another_trouble_another_run_and_one_after_an_hour_of_peace_are_news(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    troubles = Troubles(lambda: now[0])
    troubles.tell("run a", full(1))
    troubles.tell("run a", OSError(28, "No space left on device"))
    troubles.tell("run b", full(1))
    now[0] = 3600.0
    troubles.tell("run a", full(1))
    assert [record.exc_info is not None for record in caplog.records] == [True] * 4


def test_a_database_that_takes_nothing_fills_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten tracebacks a second, and as many lines of a state that the run was not in."""
    caplog.set_level(logging.INFO)
    commit, refused = engine.Session.commit, [0]
    is_full = False

    def refuse(session: engine.Session) -> None:
        if is_full:
            refused[0] += 1
            raise full(refused[0])
        commit(session)

    monkeypatch.setattr(engine.Session, "commit", refuse)
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        until(lambda: len(steps_of(client, run_id)) > 5)
        is_full = True
        os.kill(read_json(RunDir(tmp_path / "runs" / run_id).attempt(1).started)["pid"], signal.SIGKILL)
        until(lambda: refused[0] > 10)
        is_full = False
        wait_for(client, run_id, "interrupted")
    told = [record for record in caplog.records if run_id in record.getMessage()]
    assert sum(record.exc_info is not None for record in told) == 1
    assert sum("interrupted" in record.getMessage() for record in told) == 1
