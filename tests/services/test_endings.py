"""endings.py and the delays of the supervisor: decisions as functions of what was seen."""

from typing import Any

import pytest

from app.executors.base import Exit
from app.services.endings import explain, fact_of, remedy_for_memory
from app.services.lifecycle import Fact, Reason, State
from app.services.supervisor import AUTO_RESUME_AFTER_MOST_S, auto_resume_after
from app.store.tables import Attempt, Run
from cognate.config import resolve


def attempt(ending: str | None = None, **data: Any) -> Attempt:
    return Attempt(run_id="run", number=1, device="cpu", launched_at=0.0, ending=ending, ending_data=data or None)


@pytest.mark.parametrize(
    ("said", "ended", "disk_was_full", "fact"),
    [
        (attempt("finished"), Exit(0), False, Fact.FINISHED),
        (attempt("failed", reason="error"), Exit(1), True, Fact.FAILED),
        (attempt("failed", reason="disk_full"), Exit(1), False, Fact.OUT_OF_DISK),
        (attempt(), Exit(1), False, Fact.VANISHED),
        (attempt(), Exit(1), True, Fact.OUT_OF_DISK),
        (attempt(), Exit(), True, Fact.OUT_OF_DISK),  # nor could the shim write its record
        (attempt(), Exit(signal=9), True, Fact.VANISHED),
        (attempt(), Exit(0), True, Fact.VANISHED),
    ],
)
def test_an_ending_is_what_was_said_or_else_how_the_process_was_left(said: Attempt, ended: Exit, disk_was_full: bool, fact: Fact) -> None:
    assert fact_of(said, ended, disk_was_full=disk_was_full) is fact


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


@pytest.mark.parametrize(
    ("planned", "at_most", "phase", "asked", "rows", "fewer", "words"),
    [
        (None, None, "training", "halve", 16, 8, "from now on 8"),
        (4, None, "training", "halve", 4, 2, "from now on 2"),
        (4, 2, "compiling", "halve", 2, 1, "from now on 1"),
        (4, 1, "training", "halve", 1, None, "row by row already"),
        (4, None, "training", "fail", 4, None, "leaves it at that"),
        (4, None, "loading_data", "halve", 4, None, "before there was a batch"),
        (4, None, None, "halve", 4, None, "before there was a batch"),
    ],
)
def test_a_lack_of_memory_is_answered_with_half_the_rows_where_that_can_help(
    planned: int | None, at_most: int | None, phase: str | None, asked: str, rows: int, fewer: int | None, words: str
) -> None:
    config = resolve("quickstart", {"training": {"batch_size": 16}, "health": {"on_out_of_memory": asked}})
    remedy = remedy_for_memory(config, planned, at_most, phase)
    assert (remedy.rows, remedy.fewer) == (rows, fewer)
    assert words in remedy.message


def test_a_run_that_is_lost_again_and_again_waits_longer_each_time_but_not_for_ever() -> None:
    """At the 512th time, of 1000 that can be asked for, an overflow ended every look of the supervisor."""
    delays = [auto_resume_after(times) for times in (0, 1, 2, 3, 4, 512, 1000)]
    assert delays == [2.0, 8.0, 32.0, 128.0, *[AUTO_RESUME_AFTER_MOST_S] * 3]
