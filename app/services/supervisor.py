"""One loop: looks at every live attempt, takes in what its journal says, and launches what is queued.

Nothing is remembered between two looks that is not in the database or in a run's directory, so a server that starts
again simply goes on looking: live workers are found by their leases, ended ones by what they left. The loop runs in a
thread of its own; commands wake it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

from app.executors.base import Executor, Exit, LaunchError
from app.services import journal
from app.services.lifecycle import LIVE, TRANSITIONS, Command, Fact, Reason, State, advance
from app.store import runs
from app.store.engine import Store, Write
from app.store.tables import Attempt, Run
from cognate import rundir
from cognate.events import Kind
from cognate.rundir import AttemptDir, Control, RunDir, read_control, write_control

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
# What a worker is asked to do in each live state.
_INTENT: dict[State, rundir.Command] = {State.STARTING: "run", State.RUNNING: "run", State.PAUSING: "pause", State.STOPPING: "stop"}
_ENDING_FACTS = {Kind.PAUSED: Fact.PAUSED, Kind.STOPPED: Fact.STOPPED, Kind.FINISHED: Fact.FINISHED, Kind.FAILED: Fact.FAILED}


class Supervisor:
    def __init__(self, store: Store, executor: Executor, runs_dir: Path) -> None:
        self._store = store
        self._executor = executor
        self._runs_dir = runs_dir
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._looking = threading.Lock()
        self._draining = False
        self._thread = threading.Thread(target=self._work, name="supervisor", daemon=True)
        self.looked_at = 0.0

    def start(self) -> None:
        self._thread.start()

    def slots(self) -> list[str]:
        return self._executor.slots()

    def has_place_for(self, device: str) -> bool:
        """Whether a run that asks for `device` can ever be launched here."""
        return _fitting(device, self.slots(), self.slots()) is not None

    def wake(self) -> None:
        """Look now: something changed."""
        self._wake.set()

    def stop(self, grace_s: float) -> None:
        """Pause every live run, wait for their workers to save and leave, kill those that do not within `grace_s`."""
        deadline = time.monotonic() + grace_s
        with self._looking:  # a look under way may be launching; what it launches must be paused too
            self._draining = True
            self._pause_for_shutdown()
        while self._live() and time.monotonic() < deadline:
            self.wake()
            time.sleep(LOOK_EVERY_S)
        while (stubborn := self._live()) and time.monotonic() < deadline + 5:
            for run in stubborn:
                self._executor.kill(self._directory(run))
            self.wake()
            time.sleep(LOOK_EVERY_S)
        self._stop.set()
        self.wake()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and time.monotonic() - self.looked_at < 10

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # the loop must outlive any one look; what failed is tried again at the next
                log.exception("supervisor: a look failed")
                self._stop.wait(1.0)
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()

    def look(self) -> None:
        """One pass over everything; safe to repeat at any time."""
        with self._looking:
            for run in self._live():
                try:
                    self._tend(run)
                except Exception:  # one run's trouble must not keep the others from being looked after
                    log.exception("run %s: could not be looked after; trying again", run.id)
            if not self._draining:
                self._resume_after_shutdown()
                self._launch_queued()
        self.looked_at = time.monotonic()

    # --- live attempts --------------------------------------------------------------------------------------

    def _tend(self, run: Run) -> None:
        directory = self._directory(run)
        ended = self._executor.ended(directory)  # before the journal is read: what is there then is all there will be
        if ended is None and not self._has_news(run, directory):
            self._express(run, directory)
            return
        with self._store.write(durable=False) as write:
            run = runs.get(write.session, run.id)
            attempt = runs.attempt(write.session, run.id, run.attempt)
            while journal.ingest(write, run, attempt, directory):
                if ended is None:
                    break  # commit what there is; the rest at the next look
            if ended is not None:
                self._conclude(write, run, attempt, ended)
        if ended is None:
            self._express(run, directory)

    def _has_news(self, run: Run, directory: AttemptDir) -> bool:
        with self._store.read() as session, contextlib.suppress(FileNotFoundError):
            return directory.journal.stat().st_size > runs.attempt(session, run.id, run.attempt).journal_offset
        return False

    def _conclude(self, write: Write, run: Run, attempt: Attempt, ended: Exit) -> None:
        """Every process of the attempt is gone and its whole journal is in: say how it ended."""
        attempt.ended_at, attempt.exit_code, attempt.exit_signal = time.time(), ended.code, ended.signal
        fact = _ENDING_FACTS[Kind(attempt.ending)] if attempt.ending else Fact.VANISHED
        if fact not in TRANSITIONS[State(run.state)]:
            fact = Fact.VANISHED  # an answer to a command that is not in force; the checkpoint is there to resume from
        state = advance(State(run.state), fact)
        reason, detail = _explain(run, attempt, fact, ended)
        ends = state in (State.COMPLETED, State.STOPPED, State.FAILED)
        runs.set_state(
            write,
            run,
            state,
            reason=reason,
            detail=detail,
            phase=None,
            ended_at=attempt.ended_at if ends else None,
            control_deadline_at=None,
            kill_requested=False,
        )

    def _express(self, run: Run, directory: AttemptDir) -> None:
        """See that the worker knows what its run's state asks of it, and end it when asking is over."""
        if run.kill_requested or (run.control_deadline_at is not None and time.time() > run.control_deadline_at):
            self._executor.kill(directory)
            return
        wanted = Control(_INTENT[State(run.state)], run.control_serial)
        if read_control(directory) != wanted:
            write_control(directory, wanted)

    # --- the queue ------------------------------------------------------------------------------------------

    def _launch_queued(self) -> None:
        with self._store.read() as session:
            waiting = [(run.id, run.config["training"]["device"]) for run in runs.in_states(session, [State.QUEUED])]
            busy = [runs.attempt(session, run.id, run.attempt).device for run in runs.in_states(session, LIVE)]
        free = list(self._executor.slots())
        for device in busy:
            with contextlib.suppress(ValueError):
                free.remove(device)
        for run_id, wanted in waiting:
            if slot := _fitting(wanted, free, self._executor.slots()):
                free.remove(slot)
                self._launch(run_id, slot)

    def _launch(self, run_id: str, device: str) -> None:
        with self._store.write() as write:
            run = runs.get(write.session, run_id)
            if run.state != State.QUEUED:
                return  # paused or stopped since we looked
            number = run.attempt + 1
            write.session.add(Attempt(run_id=run.id, number=number, device=device, launched_at=time.time()))
            runs.set_state(
                write,
                run,
                advance(State.QUEUED, Fact.LAUNCHED),
                attempt=number,
                control_serial=0,
                control_deadline_at=None,
                kill_requested=False,
                ended_at=None,
            )
        try:
            directory = self._directory(run)
            directory.create()
            self._executor.launch(directory, device)
        except (LaunchError, OSError) as error:
            log.error("run %s: %s", run_id, error)
            with self._store.write() as write:
                run = runs.get(write.session, run_id)
                attempt, now = runs.attempt(write.session, run_id, run.attempt), time.time()
                attempt.ended_at, attempt.ending = now, Kind.FAILED
                failed = advance(State(run.state), Fact.FAILED)
                runs.set_state(write, run, failed, reason=Reason.LAUNCH_FAILED, detail=str(error), ended_at=now)

    # --- shutdown and start ---------------------------------------------------------------------------------

    def _pause_for_shutdown(self) -> None:
        for run in self._live():
            with self._store.write() as write:
                run = runs.get(write.session, run.id)
                if run.state in (State.STARTING, State.RUNNING):
                    runs.set_state(write, run, State.PAUSING, reason=Reason.SHUTDOWN, control_serial=run.control_serial + 1)

    def _resume_after_shutdown(self) -> None:
        """What a shutdown paused, its own or one that was itself cut short, goes on where it was."""
        with self._store.read() as session:
            ended = [run.id for run in runs.in_states(session, [State.PAUSED, State.INTERRUPTED]) if run.state_reason == Reason.SHUTDOWN]
        for run_id in ended:
            with self._store.write() as write:
                run = runs.get(write.session, run_id)
                if run.state_reason == Reason.SHUTDOWN:
                    runs.set_state(write, run, advance(State(run.state), Command.RESUME))

    def _live(self) -> list[Run]:
        with self._store.read() as session:
            return list(runs.in_states(session, LIVE))

    def _directory(self, run: Run) -> AttemptDir:
        return RunDir(self._runs_dir / run.id).attempt(run.attempt)


def _fitting(wanted: str, free: list[str], slots: list[str]) -> str | None:
    """A free slot for a run that asks for `wanted`; auto waits for a GPU where there is one."""
    if wanted == "auto":
        wanted = "cuda" if any(slot.startswith("cuda") for slot in slots) else "cpu"
    return next((slot for slot in free if slot == wanted or (wanted == "cuda" and slot.startswith("cuda:"))), None)


def _explain(run: Run, attempt: Attempt, fact: Fact, ended: Exit) -> tuple[str | None, str | None]:
    """The reason and detail of the state a run enters when an attempt has ended."""
    if fact is Fact.FAILED:
        data = attempt.ending_data or {}
        return data.get("reason", Reason.WORKER_ERROR), data.get("detail", "the worker did not say why; see its log")
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
