"""endings.py and the delays of the supervisor: decisions as functions of what was seen."""

import errno
from typing import Any

import pytest

from app.executors.base import Exit, LaunchError
from app.services.endings import explain, fact_of, refused
from app.services.lifecycle import Fact, Reason, State
from app.services.resumption import AFTER_MOST_S, pause_after
from app.store.tables import Attempt, Run
from cognate.events import EXIT_DISK_FULL


def attempt(ending: str | None = None, **data: Any) -> Attempt:
    return Attempt(run_id="run", number=1, device="cpu", launched_at=0.0, ending=ending, ending_data=data or None)


OOM_KILLED = Exit(signal=9, oom_killed=True)


@pytest.mark.parametrize(
    ("said", "ended", "disk_was_full", "fact"),
    [
        (attempt("finished"), Exit(0), False, Fact.FINISHED),
        (attempt("failed", reason="error"), Exit(1), True, Fact.FAILED),
        (attempt("failed", reason="disk_full"), Exit(1), False, Fact.OUT_OF_DISK),
        (attempt("failed", reason="gpu_error"), Exit(1), True, Fact.VANISHED),
        (attempt(), Exit(1), False, Fact.VANISHED),
        (attempt(), Exit(1), True, Fact.OUT_OF_DISK),
        (attempt(), Exit(EXIT_DISK_FULL), False, Fact.OUT_OF_DISK),
        (attempt(), Exit(), True, Fact.OUT_OF_DISK),  # nor could the shim write its record
        (attempt(), Exit(signal=9), True, Fact.VANISHED),
        (attempt(), Exit(0), True, Fact.VANISHED),
        (attempt(), OOM_KILLED, False, Fact.FAILED),
        (attempt("paused"), OOM_KILLED, False, Fact.PAUSED),
    ],
)
def test_an_ending_is_what_was_said_or_else_how_the_process_was_left(said: Attempt, ended: Exit, disk_was_full: bool, fact: Fact) -> None:
    assert fact_of(Run(id="run", state=State.RUNNING), said, ended, disk_was_full=disk_was_full) is fact


@pytest.mark.parametrize("run", [Run(id="run", state=State.RUNNING, kill_requested=True), Run(id="run", state=State.PAUSING)])
def test_a_worker_that_was_to_be_gone_is_not_taken_for_one_that_the_kernel_killed(run: Run) -> None:
    """The kernel's count rises by others' kills too; the signal may have been ours."""
    assert fact_of(run, attempt(), OOM_KILLED, disk_was_full=False) is Fact.VANISHED


def test_what_the_kernel_killed_for_memory_failed_for_it() -> None:
    reason, detail = explain(Run(id="run", state=State.RUNNING), attempt(), Fact.FAILED, OOM_KILLED)
    assert reason == Reason.OOM_HOST
    assert "the kernel killed the worker" in str(detail)


@pytest.mark.parametrize(
    ("ended", "reason", "words"),
    [
        (Exit(signal=9), Reason.SIGNAL, "killed by signal 9"),
        (Exit(3), Reason.EXIT_NONZERO, "left with code 3"),
        (Exit(rebooted=True), Reason.HOST_RESTART, "started anew"),
        (Exit(), Reason.WORKER_LOST, "no record"),
    ],
)
def test_a_worker_that_vanished_is_explained_by_what_it_left(ended: Exit, reason: Reason, words: str) -> None:
    found, detail = explain(Run(id="run", state=State.RUNNING), attempt(), Fact.VANISHED, ended)
    assert found == reason
    assert words in str(detail)


def test_a_run_whose_gpu_failed_is_lost_with_it() -> None:
    said = attempt("failed", reason="gpu_error", detail="CUDA error: ...")
    assert explain(Run(id="run", state=State.RUNNING), said, Fact.VANISHED, Exit(1)) == (Reason.GPU_ERROR, "CUDA error: ...")


def test_a_pause_that_was_ended_for_silence_says_so() -> None:
    run = Run(id="run", state=State.PAUSING, state_reason=Reason.PAUSE_TIMEOUT, state_detail="no word for 900 s", kill_requested=True)
    assert explain(run, attempt(), Fact.VANISHED, Exit(signal=9)) == (Reason.PAUSE_TIMEOUT, "no word for 900 s")


@pytest.mark.parametrize(
    ("error", "fact", "reason"),
    [
        (OSError(errno.ENOSPC, "no space"), Fact.OUT_OF_DISK, Reason.DISK_FULL),
        (OSError(errno.ENOMEM, "no memory"), Fact.VANISHED, Reason.LAUNCH_FAILED),
        (OSError(errno.EACCES, "not allowed"), Fact.FAILED, Reason.LAUNCH_FAILED),
        (LaunchError("already being worked on"), Fact.FAILED, Reason.LAUNCH_FAILED),
    ],
)
def test_a_launch_is_refused_for_good_only_where_it_would_be_again(error: Exception, fact: Fact, reason: Reason) -> None:
    assert refused(Run(id="run", state=State.STARTING), error) == (fact, reason)
    pausing = Run(id="run", state=State.PAUSING, state_reason=Reason.USER_PAUSE)
    assert refused(pausing, error) == (fact, reason if fact is Fact.FAILED else Reason.USER_PAUSE)


PAUSE_ASKED = Run(id="run", state=State.PAUSING, state_reason=Reason.USER_PAUSE)


@pytest.mark.parametrize(
    ("said", "fact", "ended"),
    [
        (attempt(), Fact.VANISHED, Exit(signal=9)),
        (attempt(), Fact.VANISHED, Exit(rebooted=True)),
        (attempt(), Fact.VANISHED, Exit()),
        (attempt("failed", reason="gpu_error"), Fact.VANISHED, Exit(1)),
        (attempt("failed", reason="disk_full", detail="no space"), Fact.OUT_OF_DISK, Exit(1)),
    ],
)
def test_a_pause_that_a_person_asked_for_is_one_however_it_ended(said: Attempt, fact: Fact, ended: Exit) -> None:
    """Killed, or out of disk, before it had saved: by its reason the run would else go on by itself."""
    reason, detail = explain(PAUSE_ASKED, said, fact, ended)
    assert reason == Reason.USER_PAUSE
    assert detail


def test_a_run_that_is_lost_again_and_again_waits_longer_each_time_but_not_for_ever() -> None:
    """At the 512th time, of 1000 that can be asked for, an overflow ended every look of the supervisor."""
    delays = [pause_after(times) for times in (0, 1, 2, 3, 4, 512, 1000)]
    assert delays == [2.0, 8.0, 32.0, 128.0, *[AFTER_MOST_S] * 3]
