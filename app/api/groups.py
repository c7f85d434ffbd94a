"""Groups: several runs launched, looked at and commanded as one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.common import GROUP_ID, LOCATION, GroupId, Limit, Pausing, Stopping, commanded
from app.api.deps import Idempotent, Parts, Service
from app.api.errors import refusals
from app.api.schemas.base import Page
from app.api.schemas.requests import GroupIn
from app.api.schemas.together import GroupOut, group_out
from app.services.lifecycle import Command
from app.services.runs import Manner, Once, Request
from app.store import runs
from cognate.config import ConfigError

router = APIRouter(prefix="/v1/groups", tags=["groups"])

_COMMANDED = commanded(GroupOut)


@router.post(
    "",
    status_code=201,
    summary="Launch several runs as one group: by default the three specialists",
    responses={
        200: {"model": GroupOut, "description": "The group that the same request made before.", "headers": LOCATION},
        201: {"headers": LOCATION},
        **refusals("invalid_config", "data_missing"),
    },
)
def launch_group(body: GroupIn, service: Service, response: Response, once: Idempotent) -> GroupOut:
    if strangers := sorted(set(body.overrides) - set(body.presets)):
        raise ConfigError([{"field": f"overrides.{name}", "message": "no preset of this group"} for name in strangers])
    requests = [
        Request(
            preset,
            _both(body.config, body.overrides.get(preset, {})),
            name=_name(body.name, preset),
            tags=body.tags,
            priority=body.priority,
            auto_resume=body.auto_resume,
        )
        for preset in body.presets
    ]
    group_id, is_new = service.runs.create_group(body.name, requests, once)
    response.headers["Location"] = f"/v1/groups/{group_id}"
    if not is_new:
        response.status_code = 200
    return _group(service, group_id)


@router.get("", summary="Groups, newest first")
def list_groups(service: Service, limit: Limit = 50, after: Annotated[str | None, Query(pattern=GROUP_ID)] = None) -> Page[GroupOut]:
    with service.store.read() as session:
        found, queue = runs.groups(session, limit + 1, after), runs.queue(session)
        data = [group_out(group, runs.of_group(session, group.id), queue) for group in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=data[-1].id if more else None)


@router.get("/{group_id}", summary="One group with its runs")
def get_group(group_id: GroupId, service: Service) -> GroupOut:
    return _group(service, group_id)


@router.post("/{group_id}/pause", status_code=202, summary="Pause every run of the group that can be", responses=_COMMANDED)
def pause_group(group_id: GroupId, service: Service, response: Response, once: Idempotent, manner: Pausing) -> GroupOut:
    return _command(service, response, group_id, Command.PAUSE, manner, once)


@router.post(
    "/{group_id}/resume",
    status_code=202,
    summary="Resume every run of the group that can be",
    responses={**_COMMANDED, **refusals("invalid_config")},
)
def resume_group(group_id: GroupId, service: Service, response: Response, once: Idempotent) -> GroupOut:
    return _command(service, response, group_id, Command.RESUME, Manner(), once)


@router.post("/{group_id}/stop", status_code=202, summary="Stop every run of the group that has not ended", responses=_COMMANDED)
def stop_group(group_id: GroupId, service: Service, response: Response, once: Idempotent, manner: Stopping) -> GroupOut:
    return _command(service, response, group_id, Command.STOP, manner, once)


@router.post(
    "/{group_id}/kill",
    status_code=202,
    summary="End every process of the group at once, saving nothing; these runs cannot be resumed",
    responses=_COMMANDED,
)
def kill_group(group_id: GroupId, service: Service, response: Response, once: Idempotent) -> GroupOut:
    return _command(service, response, group_id, Command.KILL, Manner(), once)


def _command(service: Parts, response: Response, group_id: str, command: Command, manner: Manner, once: Once | None) -> GroupOut:
    if not service.runs.command_group(group_id, command, manner, once):
        response.status_code = 200
    return _group(service, group_id)


def _group(service: Parts, group_id: str) -> GroupOut:
    with service.store.read() as session:
        return group_out(runs.group(session, group_id), runs.of_group(session, group_id), runs.queue(session))


def _both(first: dict[str, object], second: dict[str, object]) -> dict[str, object]:
    """Overrides laid over overrides, section by section."""
    both = dict(first)
    for key, value in second.items():
        below = both.get(key)
        both[key] = _both(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both


def _name(group: str | None, preset: str) -> str | None:
    return group and f"{group[:60]} {preset}"
