"""Runs: launch, list, look at, command."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from fastapi import Request as Asked
from fastapi.routing import APIRoute

from app.api.common import GROUP_ID, LOCATION, RUN_ID, Answers, Limit, Pausing, RunId, Stopping, commanded
from app.api.deps import ExpectedVersion, Idempotent, Parts, Service, parts
from app.api.errors import NoSuchThing, refusals
from app.api.schemas.base import Page
from app.api.schemas.requests import EditIn, ForkIn, LaunchIn
from app.api.schemas.runs import (
    AttemptOut,
    CheckpointOut,
    DryRunOut,
    EventOut,
    LogOut,
    RunDetailOut,
    RunOut,
    SampleOut,
    attempt_out,
    checkpoint_out,
    event_out,
    run_detail_out,
    run_json,
    run_out,
    runs_json,
    sample_out,
)
from app.services.lifecycle import Command, State
from app.services.runs import Manner, Once, Request
from app.store import plain, runs
from app.store.tables import Run
from cognate.config import ConfigError
from cognate.rundir import RunDir

router = APIRouter(prefix="/v1/runs", tags=["runs"])

LOG_BLOCK = 65536
SEEN_LENGTH = 1000
LAST_SEQ = 2**63 - 1  # of SQLite's integers
AfterSeq = Annotated[int, Query(ge=0, le=LAST_SEQ)]
_IS_RUN_ID = re.compile(RUN_ID).fullmatch
_ETAG = {"ETag": {"description": "The version, for If-Match.", "schema": {"type": "string"}}}
_CREATED: Answers = {
    200: {"model": RunDetailOut, "description": "The run that the same request made before.", "headers": LOCATION},
    201: {"headers": LOCATION},
}
_COMMANDED = commanded(RunOut)


@router.post(
    "",
    status_code=201,
    summary="Launch a run, or with dry_run only say whether it could be, and with which configuration",
    responses={
        **_CREATED,
        200: {**_CREATED[200], "model": RunDetailOut | DryRunOut, "description": "The run made before, or what a dry run resolved."},
        **refusals("invalid_config", "data_missing", "duplicate_external_id", "not_found"),
    },
)
def launch_run(body: LaunchIn, service: Service, response: Response, once: Idempotent, dry_run: bool = False) -> RunDetailOut | DryRunOut:
    wanted = Request(**body.model_dump())
    if dry_run:
        response.status_code = 200
        return DryRunOut(config=service.runs.check(wanted).model_dump(mode="json"))
    return _created(service, response, *service.runs.create(wanted, once))


@router.get("", summary="Runs, newest first", response_model=Page[RunOut])
def list_runs(
    service: Service,
    limit: Limit = 50,
    after: Annotated[str | None, Query(pattern=RUN_ID)] = None,
    state: State | None = None,
    name: Annotated[str | None, Query(max_length=80)] = None,
    preset: Annotated[str | None, Query(max_length=40)] = None,
    tag: Annotated[str | None, Query(max_length=40)] = None,
    external_id: Annotated[str | None, Query(max_length=120)] = None,
    group_id: Annotated[str | None, Query(pattern=GROUP_ID)] = None,
) -> Any:
    filters = {"state": state, "name": name, "preset": preset, "tag": tag, "external_id": external_id, "group_id": group_id}
    with service.store.read() as session:
        found = runs.page(session, limit + 1, after=after, **filters)
        queue = runs.queue(session)
    return Response(runs_json(found[:limit], queue, has_more=len(found) > limit), media_type="application/json")


class _Direct(APIRoute):
    """The route that is asked most: where nothing is to be refused, its endpoint is called without what FastAPI does for parameters."""

    def get_route_handler(self) -> Callable[[Asked], Coroutine[Any, Any, Response]]:
        careful = super().get_route_handler()

        async def handle(request: Asked) -> Response:
            run_id, seen = request.path_params["run_id"], request.headers.get("if-none-match")
            if _IS_RUN_ID(run_id) and len(seen or "") <= SEEN_LENGTH:
                return await get_run(run_id, parts(request), seen)
            return await careful(request)

        return handle


async def get_run(run_id: RunId, service: Service, if_none_match: Annotated[str | None, Header(max_length=SEEN_LENGTH)] = None) -> Response:
    shown = _shown(plain.run(service.store, run_id))
    tag = shown.headers["ETag"]
    if if_none_match is not None and tag in (seen.strip().removeprefix("W/") for seen in if_none_match.split(",")):
        return Response(status_code=304, headers={"ETag": tag})
    return shown


router.add_api_route(
    "/{run_id}",
    get_run,
    summary="One run",
    response_model=RunDetailOut,
    responses={200: {"headers": _ETAG}, 304: {"description": "It is as If-None-Match names it.", "headers": _ETAG}},
    route_class_override=_Direct,
)


@router.patch(
    "/{run_id}",
    summary="Change name, notes, tags or priority",
    response_model=RunDetailOut,
    responses={200: {"headers": _ETAG}, **refusals("version_mismatch", "invalid_config")},
)
def edit_run(run_id: RunId, body: EditIn, service: Service, version: ExpectedVersion) -> Any:
    changes = body.model_dump(exclude_unset=True)
    if empty := [key for key, value in changes.items() if value is None and key != "notes"]:
        raise ConfigError([{"field": key, "message": "cannot be empty"} for key in empty])
    run = service.runs.edit(run_id, changes, version)
    with service.store.read() as session:
        return _shown(plain.of(run, runs.queue(session)))


@router.delete(
    "/{run_id}", status_code=204, summary="Delete a run at rest with all it left", responses=refusals("version_mismatch", "run_active")
)
def delete_run(run_id: RunId, service: Service, version: ExpectedVersion) -> None:
    service.runs.delete(run_id, version)


@router.get("/{run_id}/config", summary="The configuration the run was created with")
def get_run_config(run_id: RunId, service: Service) -> dict[str, object]:
    with service.store.read() as session:
        return runs.get(session, run_id).config


@router.post("/{run_id}/pause", status_code=202, summary="Finish the step, save a checkpoint, leave the device free", responses=_COMMANDED)
def pause_run(run_id: RunId, service: Service, response: Response, once: Idempotent, manner: Pausing) -> RunOut:
    return _command(service, response, run_id, Command.PAUSE, manner, once)


@router.post(
    "/{run_id}/resume",
    status_code=202,
    summary="Queue the run again; it goes on from its newest whole checkpoint",
    responses={**_COMMANDED, **refusals("invalid_config")},
)
def resume_run(run_id: RunId, service: Service, response: Response, once: Idempotent) -> RunOut:
    return _command(service, response, run_id, Command.RESUME, Manner(), once)


@router.post("/{run_id}/checkpoint", status_code=202, summary="Save a checkpoint after this step, and go on", responses=_COMMANDED)
def checkpoint_run(run_id: RunId, service: Service, response: Response, once: Idempotent) -> RunOut:
    return _command(service, response, run_id, Command.CHECKPOINT, Manner(), once)


@router.post("/{run_id}/stop", status_code=202, summary="Finish the step, save a checkpoint, end the run for good", responses=_COMMANDED)
def stop_run(run_id: RunId, service: Service, response: Response, once: Idempotent, manner: Stopping) -> RunOut:
    return _command(service, response, run_id, Command.STOP, manner, once)


@router.post(
    "/{run_id}/kill",
    status_code=202,
    summary="End the run's processes at once, saving nothing; it cannot be resumed",
    responses=_COMMANDED,
)
def kill_run(run_id: RunId, service: Service, response: Response, once: Idempotent) -> RunOut:
    return _command(service, response, run_id, Command.KILL, Manner(), once)


@router.post(
    "/{run_id}/fork",
    status_code=201,
    summary="A new run that goes on from a checkpoint under a changed configuration",
    responses={**_CREATED, **refusals("invalid_config")},
)
def fork_run(
    run_id: RunId, service: Service, response: Response, once: Idempotent, body: Annotated[ForkIn | None, Body()] = None
) -> RunDetailOut:
    body = body or ForkIn()
    wanted = Request(preset="", **body.model_dump(exclude={"checkpoint_id", "config"}))
    return _created(service, response, *service.runs.fork(run_id, body.checkpoint_id, body.config, wanted, once))


def _command(service: Parts, response: Response, run_id: str, command: Command, manner: Manner, once: Once | None) -> RunOut:
    run, changed = service.runs.command(run_id, command, manner, once)
    if not changed:
        response.status_code = 200
    with service.store.read() as session:
        return run_out(run, runs.queue(session))


def _created(service: Parts, response: Response, run: Run, is_new: bool) -> RunDetailOut:
    response.headers["Location"] = f"/v1/runs/{run.id}"
    if not is_new:
        response.status_code = 200
    with service.store.read() as session:
        return run_detail_out(run, runs.queue(session))


def _shown(run: SimpleNamespace) -> Response:
    """A RunDetailOut; its ETag is the version, by which If-Match goes, and a digest of all there is to see."""
    body = run_json(run)
    tag = f'"{run.version}.{hashlib.sha256(body).hexdigest()[:16]}"'
    return Response(body, media_type="application/json", headers={"ETag": tag})  # as it is: the digest is of these bytes


@router.get("/{run_id}/attempts", summary="The process lives of a run")
def list_attempts(run_id: RunId, service: Service) -> Page[AttemptOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        return Page(data=[attempt_out(attempt) for attempt in runs.attempts(session, run_id)], has_more=False, next_cursor=None)


@router.get("/{run_id}/events", summary="What happened, oldest first")
def list_events(run_id: RunId, service: Service, limit: Limit = 100, after: AfterSeq = 0, kind: str | None = None) -> Page[EventOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        found = runs.events(session, run_id, after, limit + 1, kind)
        data = [event_out(event) for event in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=str(data[-1].seq) if more else None)


@router.get("/{run_id}/samples", summary="What the model wrote after held-out prompts, oldest first")
def list_samples(run_id: RunId, service: Service, limit: Limit = 100, after: AfterSeq = 0) -> Page[SampleOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        found = runs.samples(session, run_id, after, limit + 1)
        data = [sample_out(event) for event in found[:limit]]
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
    if run.attempt == 0:
        raise NoSuchThing(f"run {run_id} has no log yet: it is {run.state} and has not started")
    if number > run.attempt:
        raise NoSuchThing(f"run {run_id} has no attempt {number}")
    try:
        with RunDir(service.settings.runs / run.id).attempt(number).log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - tail) if tail is not None else min(after, size))
            text, taken = _readable(file.read(LOG_BLOCK))
    except FileNotFoundError:  # it has not printed yet, or was deleted meanwhile
        return LogOut(attempt=number, text="", next_offset=0, size=0)
    return LogOut(attempt=number, text=text, next_offset=start + taken, size=size)


def _readable(block: bytes) -> tuple[str, int]:
    """As a terminal would show it: what a carriage return writes over is left out. A character cut off at the end is left for
    the next block; how many bytes were taken."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    lines = decoder.decode(block).split("\n")
    text = "\n".join(line[line.rfind("\r", 0, -1) + 1 :] for line in lines)
    return text, len(block) - len(decoder.getstate()[0])
