"""What the routes of several modules share: ids in addresses, pages, what they answer, and how a command is given."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, Depends, Path, Query
from pydantic import BaseModel

from app.api.errors import refusals
from app.api.schemas.requests import PauseIn, StopIn
from app.services.runs import Manner

RUN_ID, GROUP_ID, JOB_ID = (rf"^{kind}_[0-9a-f-]{{36}}$" for kind in ("run", "group", "job"))
RunId = Annotated[str, Path(pattern=RUN_ID)]
GroupId = Annotated[str, Path(pattern=GROUP_ID)]
JobId = Annotated[str, Path(pattern=JOB_ID)]
Limit = Annotated[int, Query(ge=1, le=500)]

Answers = dict[int | str, dict[str, Any]]
LOCATION = {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}


def commanded(shape: type[BaseModel]) -> Answers:
    """What a command is answered with besides 202."""
    return {200: {"model": shape, "description": "It was in effect already; nothing changed."}, **refusals("invalid_transition")}


async def _pausing(body: Annotated[PauseIn | None, Body()] = None) -> Manner:
    body = body or PauseIn()
    return Manner(body.checkpoint == "save", body.deadline_s, body.on_timeout)


async def _stopping(body: Annotated[StopIn | None, Body()] = None) -> Manner:
    body = body or StopIn()
    return Manner(body.checkpoint == "save", body.grace_s)


Pausing = Annotated[Manner, Depends(_pausing)]
Stopping = Annotated[Manner, Depends(_stopping)]
