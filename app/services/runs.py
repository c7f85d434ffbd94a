"""Use cases: create a run, command it, look at it. Everything a caller may do to a run is here."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import Any

from uuid_utils import uuid7

from app.services.lifecycle import Command, Reason, State, advance, in_effect
from app.services.supervisor import Supervisor
from app.settings import Settings
from app.store import runs
from app.store.engine import Store
from app.store.tables import Run
from cognate.config import ConfigError, RunConfig, resolve
from cognate.rundir import RunDir

_REASONS = {Command.PAUSE: Reason.USER_PAUSE, Command.STOP: Reason.USER_STOP, Command.KILL: Reason.USER_KILL, Command.RESUME: None}


class DuplicateExternalId(ValueError):
    def __init__(self, external_id: str, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"external_id {external_id!r} already names run {run_id}")


@dataclass(frozen=True)
class Request:
    """What a caller asks for when launching a run."""

    preset: str
    config: dict[str, Any]
    name: str | None = None
    tags: tuple[str, ...] = ()
    seed: int | None = None
    external_id: str | None = None


class RunService:
    def __init__(self, store: Store, supervisor: Supervisor, settings: Settings) -> None:
        self._store = store
        self._supervisor = supervisor
        self._runs_dir = settings.runs

    def resolve(self, request: Request) -> RunConfig:
        """The configuration a request would run with; raises ConfigError."""
        overrides = request.config if request.seed is None else {**request.config, "seed": request.seed}
        return resolve(request.preset, overrides)

    def create(self, request: Request) -> Run:
        """Queue a new run; raises ConfigError, DuplicateExternalId."""
        config = self.resolve(request)
        self._refuse_missing_device(config.training.device)
        run_id = f"run_{uuid7()}"
        now = time.time()
        row = Run(
            id=run_id,
            name=request.name or f"{request.preset}-{run_id[-6:]}",
            preset=request.preset,
            config=config.model_dump(mode="json"),
            tags=list(request.tags),
            external_id=request.external_id,
            created_at=now,
            updated_at=now,
            queued_at=now,
            state=State.QUEUED,
        )
        directory = RunDir(self._runs_dir / run_id)
        try:
            with self._store.write() as write:
                if request.external_id and (other := runs.by_external_id(write.session, request.external_id)):
                    raise DuplicateExternalId(request.external_id, other.id)
                directory.create(config)
                write.session.add(row)
                write.session.flush()
                runs.add_event(write, run_id, 0, "state", now, None, {"state": State.QUEUED, "reason": None, "detail": None})
        except BaseException:
            shutil.rmtree(directory.path, ignore_errors=True)
            raise
        self._supervisor.wake()
        return row

    def _refuse_missing_device(self, wanted: str) -> None:
        """A run that asks for a device this machine lacks would wait for ever."""
        if not self._supervisor.has_place_for(wanted):
            message = f"{wanted!r} is not here; have {', '.join(sorted(set(self._supervisor.slots()))) or 'no device'}"
            raise ConfigError([{"field": "training.device", "message": message}])

    def command(self, run_id: str, command: Command, grace_s: float | None = None) -> tuple[Run, bool]:
        """Ask `command` of a run; the run and whether this changed anything. Raises NoSuchRun, InvalidTransition.

        grace_s: seconds a stop leaves the worker to save and leave before it is killed.
        """
        with self._store.write() as write:
            run = runs.get(write.session, run_id)
            before = State(run.state)
            if in_effect(before, command) or (command is Command.KILL and run.kill_requested):
                return run, False
            state = advance(before, command)
            changes: dict[str, Any] = {"control_serial": run.control_serial + 1}
            if command is Command.RESUME:
                self._refuse_missing_device(run.config["training"]["device"])
                changes |= {"queued_at": time.time(), "ended_at": None}
            if state is State.STOPPED:
                changes["ended_at"] = time.time()
            if command is Command.STOP and state is State.STOPPING and grace_s is not None:
                changes["control_deadline_at"] = time.time() + grace_s
            if command is Command.KILL:
                changes["kill_requested"] = True
            runs.set_state(write, run, state, reason=_REASONS[command], **changes)
        self._supervisor.wake()
        return run, True
