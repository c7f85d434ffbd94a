"""A disk that is full pauses a run, spoils nothing, and is forgiven once there is space.

The real worker under a limit of file size, and the whole service on a small file system of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cognate.events import EXIT_DISK_FULL, Failure, Kind
from cognate.rundir import MalformedLine, Places, RunDir, read_journal, verify_checkpoint
from cognate.worker import run_attempt
from tests.faults.processes import Service, count, end, next_attempt, service, start, times, train_once
from tests.faults.test_service_killed import assert_rows_are_those_of_the_journals
from tests.service import launch, steps_of, until, wait_for
from tests.training.runs import digests, events, reproducible_rows

STEPS = 6
MIB = 1 << 20
pytestmark = pytest.mark.timeout(3600)


# --- the worker -------------------------------------------------------------------------------------------------


def train_within(run: Path, cache: Path, limit: int) -> None:
    """One more attempt, by the worker's own edge, with no file larger than `limit` bytes."""
    attempt = next_attempt(RunDir(run))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    sys.exit(run_attempt(attempt, Places(None, cache), "cpu") is Kind.FAILED)


def test_a_worker_without_space_says_so_and_spoils_nothing(whole: RunDir, cache: Path, tmp_path: Path) -> None:
    """It resumes from step 2 and meets the limit in its journal, or in any file of the checkpoint of step 4."""
    draw = random.Random(10)
    met: Counter[str] = Counter()
    for number in range(times(100)):
        run = RunDir(tmp_path / f"run_{number}")
        shutil.copytree(whole.path, run.path, ignore=shutil.ignore_patterns("step_000004", "step_000006", "best.json", "attempts"))
        limit = round(10 ** draw.uniform(3, 5.7))
        code = end(start(train_within, run.path, cache, limit))
        attempt = run.attempt(1)
        assert not any(isinstance(entry, MalformedLine) for entry, _ in read_journal(attempt.journal))
        assert attempt.journal.read_bytes().endswith(b"\n")
        last = events(run)[-1]
        assert code == (1 if last.kind is Kind.FAILED else EXIT_DISK_FULL)
        if last.kind is Kind.FAILED:
            assert last.data["reason"] == Failure.DISK_FULL, last.data
        met["in a checkpoint" if last.kind is Kind.FAILED else "in the journal"] += 1
        assert not list(run.checkpoints.glob(".step_*"))
        assert next(verify_checkpoint(path)["step"] for _, path in run.complete_checkpoints()) == 2
        assert end(start(train_once, run.path, cache)) == 0
        assert digests(run, STEPS) == digests(whole, STEPS)
        assert reproducible_rows(run) == {step: row for step, row in reproducible_rows(whole).items() if step > 2}
        shutil.rmtree(run.path)
    count(
        "6 full disk, worker", f"{times(100)} limits ({', '.join(f'{n} {where}' for where, n in met.items())}), all resumed bit-identically"
    )


# --- the service ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """256 MiB of file system."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={256 * MIB}", "tmpfs", str(disk)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(ballast: Path, leave: int) -> None:
    """Leave so many bytes of the disk."""
    with ballast.open("wb") as file:
        while (free := shutil.disk_usage(ballast.parent).free) > leave:
            with contextlib.suppress(OSError):  # others write meanwhile
                os.posix_fallocate(file.fileno(), ballast.stat().st_size, free - leave)


def test_a_run_on_a_full_disk_is_paused_until_there_is_space(small_disk: Path) -> None:
    """Whichever is refused first, the journal, a checkpoint, the log or the database: nothing is lost, and it goes on by itself."""
    draw = random.Random(11)
    answers: Counter[int] = Counter()
    with service(small_disk / "home", "--step-seconds", "0.005") as found:
        for _ in range(times(50)):
            run_id = launch(found.client, steps=1_000_000)
            wait_for(found.client, run_id, "running")
            until(partial(steps_of, found.client, run_id))
            found.client.post(f"/v1/runs/{run_id}/checkpoint")
            until(partial(checkpoints_of, found, run_id))
            ballast = small_disk / "ballast"
            fill(ballast, draw.choice([0, 0, draw.randint(0, 1 << 18)]))
            worker = RunDir(found.home / "runs" / run_id).attempt(1)
            until(partial(has_left, found, worker.path))
            answers[found.client.get(f"/v1/runs/{run_id}").status_code] += 1
            answers[found.client.post(f"/v1/runs/{run_id}/checkpoint").status_code] += 1
            time.sleep(draw.uniform(0.5, 1.5))  # the disk stays full for as long as somebody needs to make room
            ballast.unlink()
            until(partial(is_at_work_again, found, run_id))
            told = found.client.get(f"/v1/runs/{run_id}/events", params={"kind": "state"}).json()["data"]
            reasons = [event["data"]["reason"] for event in told]
            assert [reason for reason in reasons if reason][:2] == ["disk_full", "auto_resume"], reasons
            found.client.post(f"/v1/runs/{run_id}/stop")
            wait_for(found.client, run_id, "stopped")
            assert_rows_are_those_of_the_journals(found.home, run_id)
            assert found.client.delete(f"/v1/runs/{run_id}").status_code == 204
    count("6 full disk, service", f"{times(50)} times paused and gone on; answers meanwhile {dict(answers)}")


def test_a_full_disk_can_be_cleared_by_deleting(small_disk: Path) -> None:
    """The database needs space to note a deletion; without a reserve the first thing a person tries was refused."""
    with service(small_disk / "home", "--step-seconds", "0.001") as found:
        run_id = launch(found.client, steps=3000)
        wait_for(found.client, run_id, "completed")
        (checkpoint, *_) = checkpoints_of(found, run_id)
        fill(small_disk / "ballast", 0)
        assert found.client.post("/v1/runs", json={"preset": "quickstart"}).status_code == 507
        assert found.client.delete(f"/v1/checkpoints/{checkpoint['id']}").status_code == 204
        assert found.client.delete(f"/v1/runs/{run_id}").status_code == 204
        assert found.client.get(f"/v1/runs/{run_id}").status_code == 404
        assert not list((found.home / "runs").glob(f"*{run_id}*"))


def checkpoints_of(found: Service, run_id: str) -> list[Any]:
    return list(found.client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"])


def has_left(found: Service, attempt: Path) -> bool:
    return not any(str(attempt) in " ".join(process.info["cmdline"] or []) for process in found.family())


def is_at_work_again(found: Service, run_id: str) -> bool:
    run = found.run(run_id)
    return run["attempt"] >= 2 and run["state"] == "running"
