"""Runs that go on by themselves: after a shutdown, a lost worker, a full disk. The supervisor asks at each look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sqlmodel import Session

from app.services.lifecycle import Command, Reason, State, advance
from app.services.timers import Timers
from app.store import runs
from app.store.engine import Store
from app.store.tables import Run

DISK_FLOOR_BYTES = 64 << 20  # with less than this left, a worker that says nothing more has been silenced by the full disk
AFTER_S = 2.0  # and four times as long each further time in a row
AFTER_MOST_S = 300.0
# Why a run may have been interrupted without anybody wanting it: for a reason of its own, or one that the next run would meet as well.
_ITS_OWN = (Reason.SIGNAL, Reason.EXIT_NONZERO, Reason.WORKER_LOST, Reason.HOST_RESTART, Reason.STALLED)
_LOST = (*_ITS_OWN, Reason.GPU_ERROR, Reason.LAUNCH_FAILED)


class Resumption:
    def __init__(self, store: Store, timers: Timers, free_bytes: Callable[[], int]) -> None:
        self._store = store
        self._timers = timers
        self._free_bytes = free_bytes
        self._tries: Counter[str] = Counter()  # how often in a row a run was launched again because there was space; a restart begins anew

    def look(self) -> None:
        self._after_shutdown()
        self._lost()
        self._where_there_is_space()

    def succeeded(self, run_id: str) -> None:
        """It is over, or has saved again: the next time is a first one."""
        self._tries.pop(run_id, None)

    def _after_shutdown(self) -> None:
        """What a shutdown paused, its own or one that was itself cut short, goes on where it was."""
        with self._store.read() as session:
            ended = [run.id for run in runs.in_states(session, [State.PAUSED, State.INTERRUPTED]) if run.state_reason == Reason.SHUTDOWN]
        for run_id in ended:
            with self._store.write() as write:
                run = runs.get(write.session, run_id)
                if run.state_reason == Reason.SHUTDOWN:
                    runs.set_state(write, run, advance(State(run.state), Command.RESUME))

    def _lost(self) -> None:
        """Runs whose worker was lost are launched again, until they have had their number without progress: at once the first time, so that
        none that waits takes their place, and then later each time."""
        with self._store.read() as session:
            lost = [run for run in runs.in_states(session, [State.INTERRUPTED]) if run.state_reason in _LOST]
        for run in lost:
            is_first = run.auto_resumes == 0 and run.state_reason in _ITS_OWN
            has_waited = is_first or self._timers.passed(run.id, f"lost {run.version}") > pause_after(run.auto_resumes)
            if run.auto_resumes < run.auto_resume and has_waited:
                self._resume(run.id, State.INTERRUPTED, f"attempt {run.auto_resumes + 1} of {run.auto_resume}", run.auto_resumes + 1)

    def _where_there_is_space(self) -> None:
        with self._store.read() as session:
            stuck = [run for run in runs.in_states(session, [State.PAUSED]) if run.state_reason == Reason.DISK_FULL]
            wanted = {run.id: space_for(session, run) for run in stuck}
        for run in stuck:
            delay_s = pause_after(tries - 1) if (tries := self._tries[run.id]) else 0.0  # what was too little may be so again
            has_waited = self._timers.passed(run.id, f"full {run.version}") >= delay_s
            if has_waited and self._free_bytes() > wanted[run.id]:
                self._tries[run.id] += 1
                self._resume(run.id, State.PAUSED, "there is space again", run.auto_resumes)

    def _resume(self, run_id: str, state: State, detail: str, auto_resumes: int) -> None:
        with self._store.write() as write:
            run = runs.get(write.session, run_id)
            if run.state == state:
                after = advance(state, Command.RESUME)
                runs.set_state(write, run, after, reason=Reason.AUTO_RESUME, detail=detail, auto_resumes=auto_resumes, ended_at=None)


def space_for(session: Session, run: Run) -> int:
    """Bytes of which more must be free for a run to be set to work: two checkpoints, and what silences no worker.

    A first checkpoint has weights, and three tensors as large of the optimizer's; nothing is known of it before the plan is.
    """
    first = 16 * int((run.plan or {}).get("total_params", 0))
    return 2 * max((row.bytes for row in runs.checkpoints(session, run.id)), default=first) + 2 * DISK_FLOOR_BYTES


def pause_after(times: int) -> float:
    """Seconds until something is tried again that came to nothing `times` times in a row."""
    return min(AFTER_S * 4.0 ** min(times, 10), AFTER_MOST_S)
