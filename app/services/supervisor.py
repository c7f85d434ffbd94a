"""One loop: looks at every live attempt, takes in what its journal says, and launches what is queued.

Nothing is remembered between two looks that is not in the database or in a run's directory, so a server that starts
again simply goes on looking: live workers are found by their leases, ended ones by what they left. The loop runs in a
thread of its own; commands wake it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlmodel import Session

from app.executors.base import Executor, Exit, LaunchError
from app.services import journal, memory
from app.services.ailments import Ailment
from app.services.alerts import Alerts
from app.services.detectors import GPU_LOOK_EVERY_S
from app.services.endings import explain, fact_of, refused
from app.services.health import Finding
from app.services.jobs import JobService
from app.services.lifecycle import LIVE, TRANSITIONS, Command, Fact, Reason, State, advance
from app.services.places import asked_for, fitting, is_news, missing, rested
from app.services.rests import Rest, Rests, tells_of_a_step
from app.services.resumption import DISK_FLOOR_BYTES, Resumption, pause_after, space_for
from app.services.timers import Timers
from app.services.troubles import Troubles
from app.settings import Settings
from app.store import runs
from app.store.engine import Store, Write
from app.store.tables import Attempt, Run
from cognate import rundir
from cognate.config import parse
from cognate.events import Event, Kind
from cognate.rundir import AttemptDir, Control, Limits, RunDir, read_control, write_control, write_limits

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1
_ENDS = (State.COMPLETED, State.STOPPED, State.FAILED)
_NO_MEMORY = (Reason.OOM_CUDA, Reason.OOM_HOST)
_AFTER_SILENCE = {None: "", Reason.STALLED: "; it is ended and launched again", Reason.PAUSE_TIMEOUT: "; it is ended"}
# What a worker is asked to do in each live state.
_INTENT: dict[State, rundir.Command] = {State.STARTING: "run", State.RUNNING: "run", State.PAUSING: "pause", State.STOPPING: "stop"}
Completed = Callable[[Write, Run, Sequence[str]], None]


class Holder(NamedTuple):
    """Who has a slot: a run, a job, or nobody, while it is rested or until somebody comes."""

    slot: str
    run_id: str | None
    job_id: str | None
    rest: Rest | None = None

    @property
    def is_free(self) -> bool:
        return self.run_id is None and self.job_id is None and self.rest is None


class Supervisor:
    def __init__(self, store: Store, executor: Executor, settings: Settings, jobs: JobService, on_completed: Sequence[Completed]) -> None:
        """on_completed: what follows when a run is, in the same transaction; given the slots that there are"""
        self._on_completed = on_completed
        self._store = store
        self._jobs = jobs
        self._executor = executor
        self._settings = settings
        self._runs_dir = settings.runs
        self._timers = Timers()
        self._alerts = Alerts()
        self._rests = Rests(pause_after)
        self._resumption = Resumption(store, self._timers, lambda: self._free_bytes())
        self._troubles = Troubles()
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

    def holders(self) -> list[Holder]:
        """Each slot, and who has it."""
        with self._store.read() as session:
            busy = [(runs.attempt(session, run.id, run.attempt).device, run.id) for run in runs.in_states(session, LIVE)]
        at_jobs = self._jobs.gpus()
        found = []
        for slot in self.slots():
            taken = next((pair for pair in busy if pair[0] == slot), None)
            if taken is not None:
                busy.remove(taken)
            found.append(Holder(slot, taken[1] if taken else None, at_jobs.get(slot), self._rests.of(slot)))
        return found

    def trouble(self) -> str | None:
        """What the driver says that does not tell of its GPUs."""
        return self._executor.trouble()

    def describe(self, slot: str) -> dict[str, Any]:
        return self._executor.describe(slot)

    def has_place_for(self, device: str) -> bool:
        """Whether a run that asks for `device` can ever be launched here."""
        slots, trouble = self.slots(), self.trouble()
        may_come = trouble is not None and device != "cpu"
        return may_come or fitting(asked_for(device, slots, trouble, None), slots) is not None

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
        self._jobs.stop()
        self._executor.close()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and time.monotonic() - self.looked_at < 10

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception as error:  # the loop must outlive any one look; what failed is tried again at the next
                self._troubles.tell("supervisor: a look failed", error)
                self._stop.wait(1.0)
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()

    def look(self) -> None:
        """One pass over everything; safe to repeat at any time."""
        with self._looking:
            for run in self._live():
                try:
                    self._tend(run)
                except Exception as error:  # one run's trouble must not keep the others from being looked after
                    self._alerts.forget(run.id)
                    self._troubles.tell(f"run {run.id}: could not be looked after; trying again", error)
            if not self._draining:
                self._resumption.look()
                self._jobs.look(self._launch_queued(), self.slots())
                self._executor.tend()
        self.looked_at = time.monotonic()

    # --- live attempts --------------------------------------------------------------------------------------

    def _tend(self, run: Run) -> None:
        directory = self._directory(run)
        ended = self._executor.ended(directory)  # before the journal is read: what is there then is all there will be
        if ended is None and not self._has_news(run, directory):
            self._notice_silence(run)
            self._look_at_gpu(run)
            self._express(run, directory)
            return
        self._timers.forget(run.id, "silence")
        if ended is not None and self._free_bytes() < DISK_FLOOR_BYTES:
            self._timers.do(run.id, "full")  # now: what follows may not succeed before there is space again
        with self._store.write(durable=False) as write:
            run = runs.get(write.session, run.id)
            attempt = runs.attempt(write.session, run.id, run.attempt)
            self._alerts.prepare(write.session, run, attempt)
            if ended is None:
                self._alerts.clear(write, run, (Ailment.STALLED,), "the worker speaks again")
            while journal.ingest(write, run, attempt, directory, partial(self._watch, write, run, attempt)):
                if ended is None:
                    break  # commit what there is; the rest at the next look
            if ended is not None:
                self._conclude(write, run, attempt, ended)
        if ended is None:
            self._look_at_gpu(run)
            self._express(run, directory)
        else:
            self._timers.forget(run.id)
            self._rests.ended(attempt.device, run.state, run.state_reason, run.state_detail)

    def _watch(self, write: Write, run: Run, attempt: Attempt, events: Sequence[Event]) -> None:
        self._alerts.take(write, run, attempt, events)
        if tells_of_a_step(events, attempt.resumed_from_step or 0):
            self._rests.stepped(attempt.device)

    def _look_at_gpu(self, run: Run) -> None:
        """How busy the run's GPU is, now and then while it trains; a device that cannot say is not judged."""
        if run.phase != "training" or run.state != State.RUNNING:
            return
        if self._timers.passed(run.id, "gpu") < GPU_LOOK_EVERY_S:
            return
        self._timers.do(run.id, "gpu")
        with self._store.read() as session:
            device = runs.attempt(session, run.id, run.attempt).device
        if (percent := self.describe(device).get("utilisation_percent")) is not None:
            with self._store.write(durable=False) as write:
                self._alerts.look_at_gpu(write, runs.get(write.session, run.id), percent / 100)

    def _has_news(self, run: Run, directory: AttemptDir) -> bool:
        with self._store.read() as session, contextlib.suppress(FileNotFoundError):
            return directory.journal.stat().st_size > runs.attempt(session, run.id, run.attempt).journal_offset
        return False

    def _conclude(self, write: Write, run: Run, attempt: Attempt, ended: Exit) -> None:
        """Every process of the attempt is gone and its whole journal is in: say how it ended."""
        attempt.ended_at, attempt.exit_code, attempt.exit_signal = time.time(), ended.code, ended.signal
        fact = fact_of(run, attempt, ended, disk_was_full=self._timers.is_done(run.id, "full"))
        if fact not in TRANSITIONS[State(run.state)]:
            fact = Fact.VANISHED  # an answer to a command that is not in force; the checkpoint is there to resume from
        before, phase = State(run.state), run.phase
        state = advance(before, fact)
        reason, detail = explain(run, attempt, fact, ended)
        ends = state in _ENDS
        has_progressed = self._made_progress(write, run)
        if ends or has_progressed:
            self._resumption.succeeded(run.id)
        runs.set_state(
            write,
            run,
            state,
            reason=reason,
            detail=detail,
            phase=None,
            ended_at=attempt.ended_at if ends else None,
            control_grace_s=None,
            kill_requested=False,
            auto_resumes=0 if has_progressed else run.auto_resumes,
        )
        if state is State.COMPLETED:
            for follow in self._on_completed:
                follow(write, run, self.slots())
        self._alerts.worker_ended(write, run)
        if state is State.FAILED and reason in _NO_MEMORY:
            self._answer_lack_of_memory(write, run, phase, goes_on=before in (State.STARTING, State.RUNNING))

    def _answer_lack_of_memory(self, write: Write, run: Run, phase: str | None, *, goes_on: bool) -> None:
        """Let a run that ran out of memory go on with fewer rows at once, if that can help.

        phase: what it was at; goes_on: whether nobody asked it to pause or stop
        """
        step = (run.progress or {}).get("step", 0)
        fewer, alert = memory.answer(parse(run.config), run.plan or {}, run.rows_at_most, run.state_reason, phase, step)
        self._alerts.set(write, run, alert)
        if fewer is None:
            return
        run.rows_at_most = fewer
        if goes_on:
            queued = advance(State.FAILED, Command.RESUME)
            runs.set_state(write, run, queued, reason=Reason.AUTO_RESUME, detail=alert.message, ended_at=None)

    def _made_progress(self, write: Write, run: Run) -> bool:
        return any(row.attempt == run.attempt for row in runs.checkpoints(write.session, run.id))

    def _express(self, run: Run, directory: AttemptDir) -> None:
        """See that the worker knows what its run's state asks of it, and end it when asking is over."""
        if run.kill_requested:
            self._executor.kill(directory)
            return
        if run.control_grace_s is not None and self._timers.passed(run.id, f"control {run.control_serial}") > run.control_grace_s:
            if run.state == State.PAUSING:
                self._end_pause(run.id)
            else:
                self._executor.kill(directory)
            return
        is_checkpoint = run.state == State.RUNNING and run.checkpoint_serial and run.checkpoint_serial == run.control_serial
        intent: rundir.Command = "checkpoint" if is_checkpoint else _INTENT[State(run.state)]
        wanted = Control(intent, run.control_serial, run.control_saves)
        if read_control(directory) != wanted:
            write_control(directory, wanted)

    def _end_pause(self, run_id: str) -> None:
        """A pause is not there by its deadline: do what was asked for this case."""
        with self._store.write() as write:
            run = runs.get(write.session, run_id)
            if run.state != State.PAUSING:
                return
            serial, why = run.control_serial + 1, f"not paused within {run.control_grace_s:g} s"
            if run.on_timeout == "stop":
                state, more = advance(State.PAUSING, Command.STOP), {"kill_requested": True}
            else:
                state, more = advance(State.PAUSING, Fact.OVERDUE), {}
            changes = {"control_serial": serial, "control_grace_s": None, "control_saves": True, **more}
            runs.set_state(write, run, state, reason=Reason.PAUSE_TIMEOUT, detail=why, **changes)

    def _notice_silence(self, run: Run) -> None:
        """A worker that has not said a word for long: warn once, and if so set, end it; its run goes on, but for one that was to pause."""
        silent = self._timers.passed(run.id, "silence")
        if silent < self._settings.stall_after_s or self._timers.is_done(run.id, "stall"):
            return
        self._timers.do(run.id, "stall")
        with self._store.write() as write:
            run = runs.get(write.session, run.id)
            reason = self._ends_for_silence(run)
            message = f"no word for {silent:.0f} s{_AFTER_SILENCE[reason]}"
            log.warning("run %s: %s", run.id, message)
            step = (run.progress or {}).get("step")
            if Ailment.STALLED not in {alert["kind"] for alert in run.alerts}:  # else it is told already: the server was started anew
                self._alerts.set(write, run, Finding(Ailment.STALLED, True, message, {"silent_s": silent, "step": step}, step))
            if reason is not None:  # the state stays what it is until the worker is gone
                runs.change(write, run, state_reason=reason, state_detail=message, kill_requested=True)

    def _ends_for_silence(self, run: Run) -> Reason | None:
        """Why a silent worker is ended, if it is; a stop and a shutdown have an end of their own."""
        if self._settings.on_stall != "restart" or run.state == State.STOPPING or run.state_reason == Reason.SHUTDOWN:
            return None
        return Reason.PAUSE_TIMEOUT if run.state == State.PAUSING else Reason.STALLED

    # --- the queue ------------------------------------------------------------------------------------------

    def _launch_queued(self) -> list[str]:
        """Give each free slot to the run whose turn it is; the slots that are left."""
        with self._store.read() as session:
            queued = [] if runs.is_held(session) else runs.in_states(session, [State.QUEUED])
            waiting = [(run.id, run.config["training"]["device"], _last_slot(session, run), run.state_detail) for run in queued]
        holders, slots, trouble = self.holders(), self.slots(), self.trouble()
        free = sorted((holder.slot for holder in holders if holder.is_free), key=self._rests.failures)
        resting = {holder.slot: holder.rest.why for holder in holders if holder.rest is not None}
        for run_id, device, last, told in waiting:
            wanted = asked_for(device, slots, trouble, last)
            if slot := fitting(wanted, free):
                free.remove(slot)
                self._launch(run_id, slot)
                continue
            at_rest = fitting(wanted, resting)
            why = rested(at_rest, resting.pop(at_rest)) if at_rest else missing(device, wanted, slots, trouble)
            if is_news(why, told):
                self._say_why_it_waits(run_id, why)
        return free

    def _say_why_it_waits(self, run_id: str, why: str | None) -> None:
        with self._store.write() as write:
            run = write.session.get(Run, run_id)
            if run is not None and run.state == State.QUEUED:
                runs.set_state(write, run, advance(State.QUEUED, Fact.WAITING), reason=run.state_reason, detail=why)

    def _launch(self, run_id: str, device: str) -> None:
        with self._store.write() as write:
            run = write.session.get(Run, run_id)
            if run is None or run.state != State.QUEUED:
                return  # deleted, paused or stopped since we looked
            if (free := self._free_bytes()) <= (wanted := space_for(write.session, run)):
                detail = f"{_mib(free)} are free, and a run begins with more than {_mib(wanted)}, so that it can save"
                runs.set_state(write, run, advance(State.QUEUED, Fact.OUT_OF_DISK), reason=Reason.DISK_FULL, detail=detail)
                return
            number = run.attempt + 1
            write.session.add(Attempt(run_id=run.id, number=number, device=device, launched_at=time.time()))
            runs.set_state(
                write,
                run,
                advance(State.QUEUED, Fact.LAUNCHED),
                attempt=number,
                control_serial=0,
                control_grace_s=None,
                control_saves=True,
                checkpoint_serial=0,
                kill_requested=False,
                ended_at=None,
            )
        try:
            directory = self._directory(run)
            directory.create()
            if run.rows_at_most is not None:
                write_limits(directory, Limits(run.rows_at_most))
            self._executor.launch(directory, device)
        except (LaunchError, OSError) as error:
            log.error("run %s: %s", run_id, error)
            with self._store.write() as write:
                run = runs.get(write.session, run_id)
                attempt, now = runs.attempt(write.session, run_id, run.attempt), time.time()
                attempt.ended_at, attempt.ending = now, Kind.FAILED
                fact, reason = refused(run, error)
                state = advance(State(run.state), fact)
                runs.set_state(write, run, state, reason=reason, detail=str(error), ended_at=now if state in _ENDS else None)

    # --- shutdown -------------------------------------------------------------------------------------------

    def _pause_for_shutdown(self) -> None:
        for run in self._live():
            with self._store.write() as write:
                run = runs.get(write.session, run.id)
                if run.state in (State.STARTING, State.RUNNING):
                    runs.set_state(write, run, State.PAUSING, reason=Reason.SHUTDOWN, control_serial=run.control_serial + 1)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._settings.home).free

    def _live(self) -> list[Run]:
        with self._store.read() as session:
            return list(runs.in_states(session, LIVE))

    def _directory(self, run: Run) -> AttemptDir:
        return RunDir(self._runs_dir / run.id).attempt(run.attempt)


def _last_slot(session: Session, run: Run) -> str | None:
    return runs.attempt(session, run.id, run.attempt).device if run.attempt else None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
