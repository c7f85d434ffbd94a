"""How an attempt ended, from what it said and how its process was left; and what follows from a lack of memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from app.executors.base import Exit
from app.services.health import fewer_rows
from app.services.lifecycle import Fact, Reason, State
from app.store.tables import Attempt, Run
from cognate.config import RunConfig
from cognate.events import Kind

_FACTS = {Kind.PAUSED: Fact.PAUSED, Kind.STOPPED: Fact.STOPPED, Kind.FINISHED: Fact.FINISHED, Kind.FAILED: Fact.FAILED}


def fact_of(attempt: Attempt, ended: Exit, *, disk_was_full: bool) -> Fact:
    """disk_was_full: when the process was first seen to be gone"""
    fact = _FACTS[Kind(attempt.ending)] if attempt.ending else Fact.VANISHED
    if fact is Fact.FAILED and (attempt.ending_data or {}).get("reason") == Reason.DISK_FULL:
        return Fact.OUT_OF_DISK
    left_by_itself = ended.signal is None and ended.code != 0
    return Fact.OUT_OF_DISK if fact is Fact.VANISHED and left_by_itself and disk_was_full else fact


def explain(run: Run, attempt: Attempt, fact: Fact, ended: Exit) -> tuple[str | None, str | None]:
    """The reason and detail of the state a run enters when an attempt has ended."""
    if fact is Fact.OUT_OF_DISK:
        said = (attempt.ending_data or {}).get("detail", "the worker left without a word and the disk is full")
        return (Reason.DISK_FULL, said) if run.state != State.STOPPING else (run.state_reason, said)
    if fact is Fact.FAILED:
        data = attempt.ending_data or {}
        return data.get("reason", Reason.WORKER_ERROR), data.get("detail", "the worker did not say why; see its log")
    if run.state_reason == Reason.STALLED and fact is Fact.VANISHED:
        return Reason.STALLED, run.state_detail
    if fact is not Fact.VANISHED or run.kill_requested or run.state == State.STOPPING:
        return (run.state_reason, None) if fact is not Fact.FINISHED else (None, None)
    if run.state_reason == Reason.SHUTDOWN:
        return Reason.SHUTDOWN, "the worker was ended before it had saved; it goes on from its last checkpoint"
    if ended.signal is not None:
        return Reason.SIGNAL, f"the worker was killed by signal {ended.signal}"
    if ended.code is not None:
        return Reason.EXIT_NONZERO, f"the worker left with code {ended.code} and no last word; see its log"
    if ended.rebooted:
        return Reason.HOST_RESTART, "the machine was started anew while the run was at work"
    if run.state == State.STARTING:
        return Reason.WORKER_LOST, "the server ended while it was starting the worker, or the worker before it could say a word"
    return Reason.WORKER_LOST, "the worker and its shim are gone and left no record of how they ended"


@dataclass(frozen=True)
class Remedy:
    """Against a lack of memory. rows: of a batch, at once, that were too many; fewer: to go on with, or None: there is no remedy"""

    rows: int
    fewer: int | None
    message: str


def remedy_for_memory(config: RunConfig, planned: int | None, at_most: int | None, phase: str | None) -> Remedy:
    """Fewer rows at once, where that can help (decision 10).

    planned: rows at once by the run's plan; at_most: since memory did not suffice before; phase: what the worker was at
    """
    planned = planned or config.training.micro_batch_size or config.training.batch_size
    rows = min(planned, at_most or planned)
    fewer = fewer_rows(config.training.batch_size, rows)
    if phase in (None, "loading_data"):
        return Remedy(rows, None, "it happened before there was a batch, so fewer rows at once are no remedy")
    if fewer is None:
        return Remedy(rows, None, "a batch went through the model row by row already")
    if config.health.on_out_of_memory == "fail":
        return Remedy(rows, None, f"with {rows} rows of a batch at once; health.on_out_of_memory leaves it at that")
    return Remedy(rows, fewer, f"{rows} rows of a batch at once were too many; from now on {fewer}")
