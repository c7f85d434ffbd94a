"""Another process holds the database for some seconds: commands wait or answer 503, reads go on, and nothing is lost."""

from __future__ import annotations

import itertools
import random
import sqlite3
import time
from collections import Counter
from pathlib import Path

import pytest

from cognate.events import Event
from cognate.rundir import RunDir, read_journal
from tests.faults.processes import count, end, start, times
from tests.faults.test_service_killed import assert_rows_are_those_of_the_journals
from tests.service import launch, serving, wait_for

pytestmark = pytest.mark.timeout(3600)


def hold(database: Path, seconds: float, held: Path) -> None:
    connection = sqlite3.connect(database, isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    held.touch()
    time.sleep(seconds)
    connection.execute("ROLLBACK")
    connection.close()


def test_a_locked_database_is_waited_for_or_said_to_be_busy(tmp_path: Path) -> None:
    draw = random.Random(12)
    answers: Counter[int] = Counter()
    slowest = 0.0
    with serving(tmp_path, "--step-seconds", "0.01", cpu_slots=2) as client:
        bystander = launch(client, steps=1_000_000)
        wait_for(client, bystander, "running")
        for number in range(times(20)):
            held = tmp_path / f"held_{number}"
            run_id = launch(client, steps=1_000_000)
            wait_for(client, run_id, "running")
            holder = start(hold, tmp_path / "cognate.db", draw.uniform(0.1, 6.0), held)
            while not held.exists():
                time.sleep(0.01)
            while True:  # as a client does that is told when to come again
                began = time.monotonic()
                answer = client.post(f"/v1/runs/{run_id}/stop", headers={"Idempotency-Key": f"stop-{number}"})
                slowest = max(slowest, time.monotonic() - began)
                answers[answer.status_code] += 1
                assert answer.status_code in (200, 202, 503), answer.text
                assert client.get(f"/v1/runs/{bystander}").status_code == 200
                if answer.status_code != 503:
                    break
                assert answer.headers["Retry-After"]
            assert end(holder) == 0
            assert wait_for(client, run_id, "stopped")["state_reason"] == "user_stop"
            assert_rows_are_those_of_the_journals(tmp_path, run_id)
        journal = RunDir(tmp_path / "runs" / bystander).attempt(1).journal
        at = [entry.at for entry, _ in read_journal(journal, 0, 1 << 26) if isinstance(entry, Event)]
        longest = max(then - first for first, then in itertools.pairwise(at))
        assert longest < 2.0  # its worker knows nothing of databases
        client.post(f"/v1/runs/{bystander}/stop")
        assert wait_for(client, bystander, "stopped")["attempt"] == 1
        assert_rows_are_those_of_the_journals(tmp_path, bystander)
    count("7 locked database", f"{times(20)} locks of up to 6 s, answers {dict(answers)}, the slowest after {slowest:.1f} s")
