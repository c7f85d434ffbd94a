"""How an attempt ended, from what it said and how its process was left, or from why it could not begin. Pure."""

from __future__ import annotations

import errno

from app.executors.base import Exit
from app.services.lifecycle import Fact, Reason, State
from app.store.tables import Attempt, Run
from cognate.events import EXIT_DISK_FULL, Kind

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)  # too many files or processes, or too little memory, just then
_FACTS = {Kind.PAUSED: Fact.PAUSED, Kind.STOPPED: Fact.STOPPED, Kind.FINISHED: Fact.FINISHED, Kind.FAILED: Fact.FAILED}


def fact_of(run: Run, attempt: Attempt, ended: Exit, *, disk_was_full: bool) -> Fact:
    """disk_was_full: when the process was first seen to be gone"""
    fact = _FACTS[Kind(attempt.ending)] if attempt.ending else Fact.VANISHED
    if fact is Fact.FAILED and (attempt.ending_data or {}).get("reason") == Reason.DISK_FULL:
        return Fact.OUT_OF_DISK
    if fact is Fact.FAILED and _gpu_failed(attempt):
        return Fact.VANISHED  # it is lost with its GPU, not through a fault of its own
    if fact is Fact.VANISHED and ended.oom_killed and run.state in (State.STARTING, State.RUNNING) and not run.kill_requested:
        return Fact.FAILED  # nobody wanted it gone, so the signal was the kernel's
    silenced = ended.code == EXIT_DISK_FULL or (disk_was_full and ended.signal is None and ended.code != 0)
    return Fact.OUT_OF_DISK if fact is Fact.VANISHED and silenced else fact


def explain(run: Run, attempt: Attempt, fact: Fact, ended: Exit) -> tuple[str | None, str | None]:
    """The reason and detail of the state a run enters when an attempt has ended."""
    if fact is Fact.OUT_OF_DISK:
        said = (attempt.ending_data or {}).get("detail", "the disk was full, and the worker left without a word")
        return (run.state_reason, said) if _was_commanded(run) else (Reason.DISK_FULL, said)
    if fact is Fact.FAILED and attempt.ending is None:
        return Reason.OOM_HOST, "the machine's memory did not suffice, and the kernel killed the worker"
    if fact is Fact.FAILED:
        data = attempt.ending_data or {}
        return data.get("reason", Reason.WORKER_ERROR), data.get("detail", "the worker did not say why; see its log")
    silenced = run.state_reason == Reason.STALLED or (run.state_reason == Reason.PAUSE_TIMEOUT and run.state == State.PAUSING)
    if silenced and fact is Fact.VANISHED:
        return run.state_reason, run.state_detail
    if fact is not Fact.VANISHED or run.kill_requested or run.state == State.STOPPING:
        return (run.state_reason, None) if fact is not Fact.FINISHED else (None, None)
    if run.state_reason == Reason.SHUTDOWN or _was_commanded(run):  # a pause is a pause, though nothing was saved for it
        return run.state_reason, "the worker was ended before it had saved; it goes on from its last checkpoint"
    if _gpu_failed(attempt):
        return Reason.GPU_ERROR, (attempt.ending_data or {}).get("detail", "the worker did not say more; see its log")
    if ended.signal is not None:
        return Reason.SIGNAL, f"the worker was killed by signal {ended.signal}"
    if ended.code is not None:
        return Reason.EXIT_NONZERO, f"the worker left with code {ended.code} and no last word; see its log"
    if ended.rebooted:
        return Reason.HOST_RESTART, "the machine was started anew while the run was at work"
    if run.state == State.STARTING:
        return Reason.WORKER_LOST, "the server ended while it was starting the worker, or the worker before it could say a word"
    return Reason.WORKER_LOST, "the worker and its shim are gone and left no record of how they ended"


def refused(run: Run, error: Exception) -> tuple[Fact, str | None]:
    """What a launch that came to nothing is to its run, and the reason: what may pass is no fault of the run's."""
    cause = error if isinstance(error, OSError) else error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if number in _NO_SPACE:
        fact, reason = Fact.OUT_OF_DISK, Reason.DISK_FULL
    elif number in _PASSING:
        fact, reason = Fact.VANISHED, Reason.LAUNCH_FAILED
    else:
        return Fact.FAILED, Reason.LAUNCH_FAILED
    return fact, run.state_reason if _was_commanded(run) else reason


def _gpu_failed(attempt: Attempt) -> bool:
    return (attempt.ending_data or {}).get("reason") == Reason.GPU_ERROR


def _was_commanded(run: Run) -> bool:
    """Whether a person asked for what the attempt was ending for: then only a person lets the run go on."""
    return run.state == State.STOPPING or (run.state == State.PAUSING and run.state_reason == Reason.USER_PAUSE)
