"""Runs: launch, list, look at, command."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from fastapi import Path as PathParameter

from app.api.deps import Parts, Service
from app.api.errors import NoSuchThing
from app.api.schemas import (
    AttemptOut,
    CheckpointOut,
    DryRunOut,
    EventOut,
    LaunchIn,
    LogOut,
    Page,
    RunDetailOut,
    RunOut,
    StopIn,
    attempt_out,
    checkpoint_out,
    event_out,
    run_detail_out,
    run_out,
)
from app.services.lifecycle import Command, State
from app.services.runs import Request
from app.store import runs
from cognate.rundir import RunDir

router = APIRouter(prefix="/v1/runs", tags=["runs"])

RunId = Annotated[str, PathParameter(pattern=r"^run_[0-9a-f-]{36}$")]
Limit = Annotated[int, Query(ge=1, le=500)]
LOG_BLOCK = 65536


@router.post("", status_code=201, summary="Launch a run, or with dry_run only resolve its configuration")
def launch_run(body: LaunchIn, service: Service, response: Response, dry_run: bool = False) -> RunDetailOut | DryRunOut:
    request = Request(body.preset, body.config, body.name, tuple(body.tags), body.seed, body.external_id)
    if dry_run:
        response.status_code = 200
        return DryRunOut(config=service.runs.resolve(request).model_dump(mode="json"))
    run = service.runs.create(request)
    response.headers["Location"] = f"/v1/runs/{run.id}"
    with service.store.read() as session:
        return run_detail_out(run, runs.queue(session))


@router.get("", summary="Runs, newest first")
def list_runs(
    service: Service, limit: Limit = 50, after: RunId | None = None, state: State | None = None, preset: str | None = None
) -> Page[RunOut]:
    with service.store.read() as session:
        found = runs.page(session, limit + 1, after=after, state=state, preset=preset)
        queue = runs.queue(session)
        data = [run_out(run, queue) for run in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=data[-1].id if more else None)


@router.get("/{run_id}", summary="One run")
def get_run(run_id: RunId, service: Service) -> RunDetailOut:
    with service.store.read() as session:
        return run_detail_out(runs.get(session, run_id), runs.queue(session))


@router.get("/{run_id}/config", summary="The configuration the run was created with")
def get_run_config(run_id: RunId, service: Service) -> dict[str, object]:
    with service.store.read() as session:
        return runs.get(session, run_id).config


@router.post("/{run_id}/pause", status_code=202, summary="Finish the step, save a checkpoint, leave the device free")
def pause_run(run_id: RunId, service: Service, response: Response) -> RunOut:
    return _command(service, response, run_id, Command.PAUSE)


@router.post("/{run_id}/resume", status_code=202, summary="Queue the run again; it goes on from its newest whole checkpoint")
def resume_run(run_id: RunId, service: Service, response: Response) -> RunOut:
    return _command(service, response, run_id, Command.RESUME)


@router.post("/{run_id}/stop", status_code=202, summary="Finish the step, save a checkpoint, end the run for good")
def stop_run(run_id: RunId, service: Service, response: Response, body: Annotated[StopIn | None, Body()] = None) -> RunOut:
    return _command(service, response, run_id, Command.STOP, (body or StopIn()).grace_s)


@router.post("/{run_id}/kill", status_code=202, summary="End the run's processes at once, saving nothing")
def kill_run(run_id: RunId, service: Service, response: Response) -> RunOut:
    return _command(service, response, run_id, Command.KILL)


def _command(service: Parts, response: Response, run_id: str, command: Command, grace_s: float | None = None) -> RunOut:
    run, changed = service.runs.command(run_id, command, grace_s)
    if not changed:
        response.status_code = 200
    with service.store.read() as session:
        return run_out(run, runs.queue(session))


@router.get("/{run_id}/attempts", summary="The process lives of a run")
def list_attempts(run_id: RunId, service: Service) -> Page[AttemptOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        return Page(data=[attempt_out(attempt) for attempt in runs.attempts(session, run_id)], has_more=False, next_cursor=None)


@router.get("/{run_id}/events", summary="What happened, oldest first")
def list_events(
    run_id: RunId, service: Service, limit: Limit = 100, after: Annotated[int, Query(ge=0)] = 0, kind: str | None = None
) -> Page[EventOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        found = runs.events(session, run_id, after, limit + 1, kind)
        data = [event_out(event) for event in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=str(data[-1].seq) if more else None)


@router.get("/{run_id}/checkpoints", summary="Checkpoints, oldest first, with the sha-256 of their files")
def list_checkpoints(run_id: RunId, service: Service) -> Page[CheckpointOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        return Page(data=[checkpoint_out(found) for found in runs.checkpoints(session, run_id)], has_more=False, next_cursor=None)


@router.get("/{run_id}/logs", summary="What the worker printed, by byte offset")
def get_logs(
    run_id: RunId,
    service: Service,
    attempt: Annotated[int | None, Query(ge=1)] = None,
    after: Annotated[int, Query(ge=0, description="Byte to start at.")] = 0,
    tail: Annotated[int | None, Query(ge=1, le=LOG_BLOCK, description="Only this many bytes from the end.")] = None,
) -> LogOut:
    with service.store.read() as session:
        run = runs.get(session, run_id)
    number = attempt or run.attempt
    if not 1 <= number <= run.attempt:
        raise NoSuchThing(f"run {run_id} has no attempt {number}")
    path = RunDir(service.settings.runs / run.id).attempt(number).log
    if not path.exists():
        return LogOut(attempt=number, text="", next_offset=0, size=0)
    size = path.stat().st_size
    start = max(0, size - tail) if tail is not None else min(after, size)
    with path.open("rb") as file:
        file.seek(start)
        block = file.read(LOG_BLOCK)
    return LogOut(attempt=number, text=block.decode(errors="replace"), next_offset=start + len(block), size=size)
