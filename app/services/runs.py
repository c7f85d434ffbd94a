"""Use cases: create, fork, group, command, change, delete a run. Everything a caller may do to a run is here."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlmodel import Session
from uuid_utils import uuid7

from app.services.datasets import NoData
from app.services.lifecycle import AT_REST, Command, Reason, State, advance, allowed_commands, in_effect
from app.services.mirrors import Mirrors
from app.services.removal import Aside, Reserve, settle
from app.services.supervisor import Supervisor
from app.settings import Settings
from app.store import runs
from app.store.engine import Message, Store, Write
from app.store.runs import NoCheckpoint
from app.store.tables import Checkpoint, Run, RunGroup
from cognate.config import ConfigError, RunConfig, TrainingConfig, overlaid, resolve
from cognate.rundir import RunDir

_REASONS = {Command.PAUSE: Reason.USER_PAUSE, Command.STOP: Reason.USER_STOP, Command.KILL: Reason.USER_KILL, Command.RESUME: None}
# A fork goes on from its checkpoint's weights and place in the data; these would give either another meaning.
_FIXED_IN_A_FORK = ("model", "data", "training.batch_size", "training.sequence_length", "training.gradient_accumulation")


class DuplicateExternalId(ValueError):
    def __init__(self, external_id: str, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"external_id {external_id!r} already names run {run_id}")


class StillActive(RuntimeError):
    """What is asked needs a run at rest."""


class Precondition(RuntimeError):
    """The run is not in the version that the caller saw."""


@dataclass(frozen=True)
class Request:
    """What a caller asks for when launching a run. `auto_resume` None: what the service's settings say."""

    preset: str
    config: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    tags: Sequence[str] = ()
    seed: int | None = None
    external_id: str | None = None
    priority: int = 0
    auto_resume: int | None = None
    notes: str | None = None


@dataclass(frozen=True)
class Manner:
    """How a pause or stop is to be carried out.

    save:       whether the worker saves first, or leaves what came after the newest checkpoint
    grace_s:    how long it may take, seconds; None: as long as it takes
    on_timeout: what then: "keep_running" or "stop" for a pause; a stop always ends in a kill
    """

    save: bool = True
    grace_s: float | None = None
    on_timeout: str | None = None


@dataclass(frozen=True)
class Once:
    """A request that may arrive several times and is to take effect once."""

    key: str
    method: str
    path: str
    body: bytes

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"\0".join((self.method.encode(), self.path.encode(), self.body))).hexdigest()


class RunService:
    def __init__(self, store: Store, supervisor: Supervisor, mirrors: Mirrors, settings: Settings) -> None:
        self._store = store
        self._supervisor = supervisor
        self._mirrors = mirrors
        self._settings = settings
        self._reserve = Reserve(settings.home / ".reserve")

    def settle(self) -> None:
        """Before anything is at work: end what a killed server was deleting."""
        with self._store.read() as session:
            settle(session, self._settings.runs)
        self._reserve.keep()

    def resolve(self, request: Request) -> RunConfig:
        """The configuration a request would run with; raises ConfigError, or NoData where there is nothing that it could train on."""
        overrides = request.config if request.seed is None else {**request.config, "seed": request.seed}
        config = resolve(request.preset, overrides)
        if config.data.source == "real" and not self._settings.has_data:
            raise NoData(
                f"{config.preset} trains on real data, and there are none: start the service with COGNATE_DATA_DIR, fetch a dataset "
                "(POST /v1/datasets/{name}/fetch), or set data.source to synthetic"
            )
        return config

    # --- new runs -------------------------------------------------------------------------------------------

    def check(self, request: Request) -> RunConfig:
        """The configuration that create() would queue a run with; raises what it would, and changes nothing."""
        config = self._launchable(request)
        with self._store.read() as session:
            _refuse_known_external_id(session, request.external_id)
        return config

    def create(self, request: Request, once: Once | None = None) -> tuple[Run, bool]:
        """Queue a new run; the run, and whether it is new. Raises ConfigError, NoData, DuplicateExternalId, KeyReused."""
        config = self._launchable(request)
        with self._store.write() as write:
            if known := runs.done_before(write, once):
                return runs.get(write.session, known), False
            with _Directories(self._settings.runs) as directories:
                run = self._queue(write, directories, request, config)
                runs.note_done(write, once, run.id)
                write.session.flush()
        self._supervisor.wake()
        return run, True

    def create_group(self, name: str | None, requests: list[Request], once: Once | None = None) -> tuple[str, bool]:
        """Queue several runs as one group; its id, and whether it is new. Raises as create() does."""
        configs = [self._launchable(request) for request in requests]
        with self._store.write() as write:
            if known := runs.done_before(write, once):
                return known, False
            group_id = f"group_{uuid7()}"
            write.session.add(RunGroup(id=group_id, name=name or f"group-{group_id[-6:]}", created_at=time.time()))
            write.session.flush()
            with _Directories(self._settings.runs) as directories:
                for request, config in zip(requests, configs, strict=True):
                    self._queue(write, directories, request, config, group_id=group_id)
                runs.note_done(write, once, group_id)
                write.session.flush()
        self._supervisor.wake()
        return group_id, True

    def fork(
        self, run_id: str, checkpoint_id: str | None, changes: Mapping[str, Any], request: Request, once: Once | None = None
    ) -> tuple[Run, bool]:
        """Queue a run that goes on from a checkpoint (the newest if none is named) under a changed configuration.

        Of `request` only name, tags, notes, priority and auto_resume count. Raises as create() does, and NoSuchRun, NoCheckpoint.
        """
        with self._store.write() as write:
            if known := runs.done_before(write, once):
                return runs.get(write.session, known), False
            source = runs.get(write.session, run_id)
            checkpoint = runs.usable_checkpoint(write.session, run_id, checkpoint_id)
            config = overlaid(source.config, changes)
            _refuse_what_a_fork_cannot_change(source.config, config.model_dump(mode="json"))
            _refuse_nothing_left_to_do(config.training, checkpoint.step, (source.plan or {}).get("steps_per_epoch") or [])
            self._refuse_missing_device(config.training.device)
            origin = {"run_id": run_id, "checkpoint_id": checkpoint.id, "step": checkpoint.step}
            with _Directories(self._settings.runs) as directories:
                run = self._queue(write, directories, request, config, forked_from=origin)
                _link_tree(self._path(checkpoint), RunDir(self._settings.runs / run.id).checkpoint(checkpoint.step))
                runs.note_done(write, once, run.id)
                write.session.flush()
        self._supervisor.wake()
        return run, True

    def _launchable(self, request: Request) -> RunConfig:
        config = self.resolve(request)
        self._refuse_missing_device(config.training.device)
        return config

    def _queue(self, write: Write, directories: _Directories, request: Request, config: RunConfig, **more: Any) -> Run:
        _refuse_known_external_id(write.session, request.external_id)
        run_id, now = f"run_{uuid7()}", time.time()
        run = Run(
            id=run_id,
            name=request.name or f"{config.preset}-{run_id[-6:]}",
            preset=config.preset,
            config=config.model_dump(mode="json"),
            tags=list(request.tags),
            notes=request.notes,
            external_id=request.external_id,
            priority=request.priority,
            auto_resume=self._settings.auto_resume if request.auto_resume is None else request.auto_resume,
            created_at=now,
            updated_at=now,
            queued_seq=write.newest_seq,
            state=State.QUEUED,
            **more,
        )
        directories.create(run_id, config)
        write.session.add(run)
        write.session.flush()
        runs.add_event(write, run_id, 0, "state", now, None, {"state": State.QUEUED, "reason": None, "detail": None})
        return run

    def _refuse_missing_device(self, wanted: str) -> None:
        """A run that asks for a device this machine lacks would wait for ever."""
        if not self._supervisor.has_place_for(wanted):
            message = f"{wanted!r} is not here; have {', '.join(sorted(set(self._supervisor.slots()))) or 'no device'}"
            raise ConfigError([{"field": "training.device", "message": message}])

    # --- commands -------------------------------------------------------------------------------------------

    def command(self, run_id: str, command: Command, manner: Manner = Manner(), once: Once | None = None) -> tuple[Run, bool]:
        """Ask `command` of a run; the run and whether this changed anything. Raises NoSuchRun, InvalidTransition, KeyReused."""
        with self._store.write() as write:
            if runs.done_before(write, once):
                return runs.get(write.session, run_id), False
            run = runs.get(write.session, run_id)
            changed = self._command(write, run, command, manner)
            runs.note_done(write, once, run_id)
        if changed:
            self._supervisor.wake()
        return run, changed

    def command_group(self, group_id: str, command: Command, manner: Manner = Manner(), once: Once | None = None) -> bool:
        """Ask `command` of every run of a group that can take it; whether this changed anything.

        Raises NoSuchGroup, KeyReused, or InvalidTransition when no run can.
        """
        with self._store.write() as write:
            if runs.done_before(write, once):
                return False
            members = runs.of_group(write.session, group_id)
            able = [run for run in members if command in allowed_commands(State(run.state)) or in_effect(State(run.state), command)]
            changed = [self._command(write, run, command, manner) for run in able or members[:1]]
            runs.note_done(write, once, group_id)
        if any(changed):
            self._supervisor.wake()
        return any(changed)

    def _command(self, write: Write, run: Run, command: Command, manner: Manner) -> bool:
        before = State(run.state)
        if command is Command.PAUSE and before is State.PAUSED and run.state_reason == Reason.DISK_FULL:
            runs.set_state(write, run, before, reason=Reason.USER_PAUSE, detail=run.state_detail)  # it goes on by itself no more
            return True
        if in_effect(before, command) or (command is Command.KILL and before is State.STOPPING and run.kill_requested):
            return False
        state = advance(before, command)
        serial = run.control_serial + 1
        if command is Command.CHECKPOINT:
            runs.change(write, run, control_serial=serial, checkpoint_serial=serial)
            runs.add_event(write, run.id, run.attempt, "checkpoint_requested", time.time(), None, {"serial": serial})
            return True
        changes: dict[str, Any] = {"control_serial": serial}
        if command is Command.RESUME:
            self._refuse_missing_device(run.config["training"]["device"])
            changes |= {"queued_seq": write.newest_seq, "ended_at": None, "auto_resumes": 0}
        if state is State.STOPPED:
            changes["ended_at"] = time.time()
        if state in (State.PAUSING, State.STOPPING):
            changes |= {"control_saves": manner.save, "control_grace_s": manner.grace_s, "on_timeout": manner.on_timeout}
        if command is Command.KILL:
            changes["kill_requested"] = True
        runs.set_state(write, run, state, reason=_REASONS[command], **changes)
        return True

    # --- what is kept ---------------------------------------------------------------------------------------

    def edit(self, run_id: str, changes: dict[str, Any], if_version: int | None = None) -> Run:
        """Change name, notes, tags or priority. Raises NoSuchRun, Precondition."""
        with self._store.write() as write:
            run = runs.get(write.session, run_id)
            _refuse_other_version(run, if_version)
            runs.change(write, run, **changes)
            runs.add_event(write, run.id, run.attempt, "edited", time.time(), None, changes)
        self._supervisor.wake()  # a priority may change who is next
        return run

    def delete(self, run_id: str, if_version: int | None = None) -> None:
        """Delete a run at rest, with its rows and its directory. Raises NoSuchRun, StillActive, Precondition."""
        self._reserve.around(lambda: self._delete(run_id, if_version))

    def _delete(self, run_id: str, if_version: int | None) -> None:
        with self._mirrors.without(run_id), Aside() as aside, self._store.write() as write:
            run = runs.get(write.session, run_id)
            _refuse_other_version(run, if_version)
            if run.state not in AT_REST:
                raise StillActive(f"a run that is {run.state} cannot be deleted; stop it first")
            runs.delete(write, run_id)
            write.tell(Message(0, run_id, "deleted", {"run_id": run_id}))
            aside.take(self._settings.runs / run_id)

    def pin(self, checkpoint_id: str, is_pinned: bool) -> Checkpoint:
        """Keep a checkpoint whatever comes, or no longer. Raises NoCheckpoint."""
        with self._store.write() as write:
            checkpoint = runs.checkpoint(write.session, checkpoint_id)
            if checkpoint.is_pinned != is_pinned:
                _tell(write, checkpoint, "checkpoint_edited", pinned=is_pinned)
            checkpoint.is_pinned = is_pinned
            write.session.flush()
            pinned = [row.step for row in runs.checkpoints(write.session, checkpoint.run_id) if row.is_pinned and row.removed_at is None]
            RunDir(self._settings.runs / checkpoint.run_id).pin(pinned)
        return checkpoint

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Delete a checkpoint of a run at rest that is not pinned. Raises NoCheckpoint, StillActive."""
        self._reserve.around(lambda: self._delete_checkpoint(checkpoint_id))

    def _delete_checkpoint(self, checkpoint_id: str) -> None:
        with Aside() as aside, self._store.write() as write:
            checkpoint = runs.checkpoint(write.session, checkpoint_id)
            if runs.get(write.session, checkpoint.run_id).state not in AT_REST:
                raise StillActive("its run is at work and may need it; pause or stop the run first")
            if checkpoint.is_pinned:
                raise StillActive("the checkpoint is pinned; unpin it first")
            checkpoint.removed_at = time.time()
            _tell(write, checkpoint, "checkpoint_deleted")
            aside.take(self._path(checkpoint))

    def _path(self, checkpoint: Checkpoint) -> Path:
        return RunDir(self._settings.runs / checkpoint.run_id).checkpoint(checkpoint.step)


def _tell(write: Write, checkpoint: Checkpoint, kind: str, **data: Any) -> None:
    """Who follows the run hears what was done with its checkpoint."""
    attempt = runs.get(write.session, checkpoint.run_id).attempt
    runs.add_event(write, checkpoint.run_id, attempt, kind, time.time(), checkpoint.step, {"checkpoint_id": checkpoint.id, **data})


class _Directories:
    """Run directories made in a transaction; removed when it fails."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: list[Path] = []

    def create(self, run_id: str, config: RunConfig) -> None:
        directory = RunDir(self._root / run_id)
        self._made.append(directory.path)
        directory.create(config)

    def __enter__(self) -> _Directories:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for path in self._made:
                shutil.rmtree(path, ignore_errors=True)


def _link_tree(source: Path, target: Path) -> None:
    """Copy a checkpoint without its bytes where the file system allows it: its files are never written again.

    Raises NoCheckpoint when its run's worker has just put a newer one in its place.
    """
    target.mkdir()
    try:
        for file in source.iterdir():
            try:
                os.link(file, target / file.name)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(file, target / file.name)
    except FileNotFoundError as error:
        raise NoCheckpoint(f"the files of checkpoint {source.name} are gone") from error


def _refuse_known_external_id(session: Session, external_id: str | None) -> None:
    if external_id and (other := runs.by_external_id(session, external_id)):
        raise DuplicateExternalId(external_id, other.id)


def _refuse_what_a_fork_cannot_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    problems = []
    for name in _FIXED_IN_A_FORK:
        section, _, key = name.partition(".")
        old, new = (config[section][key] if key else config[section] for config in (before, after))
        if old != new:
            message = "a fork goes on from its checkpoint's weights and place in the data, so this cannot change"
            problems.append({"field": name, "message": message})
    if before["seed"] != after["seed"]:
        problems.append({"field": "seed", "message": "a fork keeps the order of the data, which the seed decides"})
    if problems:
        raise ConfigError(problems)


def _refuse_nothing_left_to_do(training: TrainingConfig, done: int, steps_per_epoch: Sequence[int]) -> None:
    """done: steps the checkpoint has; steps_per_epoch: of the source's plan, as far as it goes, whose data the fork shares"""
    problems = []
    if training.max_steps is not None and training.max_steps <= done:
        message = f"the checkpoint has {done} steps already; a fork needs more, or no limit"
        problems.append({"field": "training.max_steps", "message": message})
    if training.epochs <= len(steps_per_epoch) and (total := sum(steps_per_epoch[: training.epochs])) <= done:
        message = f"{training.epochs} epochs are {total} steps, and the checkpoint has {done} already; a fork needs more epochs"
        problems.append({"field": "training.epochs", "message": message})
    if problems:
        raise ConfigError(problems)


def _refuse_other_version(run: Run, if_version: int | None) -> None:
    if if_version is not None and run.version != if_version:
        raise Precondition(f"run {run.id} is at version {run.version}, not {if_version}; look again")
