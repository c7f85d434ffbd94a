"""Every answer that is not 2xx is RFC 9457 problem+json, made here.

A problem's `type` is a path of this service that explains it: /v1/problems/{name}.
"""

from __future__ import annotations

import errno
import json
import logging
import sqlite3
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import compile_path

from app.services.datasets import NoData, Offline
from app.services.lifecycle import InvalidTransition, allowed_commands
from app.services.reports import NotReady
from app.services.runs import DuplicateExternalId, Precondition, StillActive
from app.store.jobs import NoSuchJob
from app.store.runs import KeyReused, NoCheckpoint, NoSuchGroup, NoSuchRun, StateChanged
from cognate.config import ConfigError

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

PROBLEMS: dict[str, tuple[int, str]] = {
    "invalid_request": (422, "The request does not have the form this endpoint takes; `errors` lists each fault."),
    "invalid_config": (422, "The configuration cannot be run; `errors` lists each field at fault."),
    "invalid_transition": (409, "The run's state does not allow this command; `allowed_commands` lists those it does."),
    "idempotency_key_reused": (422, "The Idempotency-Key came before with another request; a new request needs a new key."),
    "run_active": (
        409,
        "The run, or the run of this checkpoint, is at work or waiting to be, or the checkpoint is pinned; `detail` says which.",
    ),
    "version_mismatch": (412, "The run is no longer in the version that If-Match names; look again."),
    "duplicate_external_id": (409, "Another run already has this external_id; `run_id` names it."),
    "state_changed": (409, "The run changed while the command was being carried out; look again and repeat it."),
    "data_missing": (409, "This needs real datasets, and there are none; see COGNATE_DATA_DIR and POST /v1/datasets/{name}/fetch."),
    "not_ready": (409, "Something that this needs is not there yet; `detail` names it."),
    "offline": (409, "This needs the network, the service was started with HF_HUB_OFFLINE, and the Hugging Face cache is empty."),
    "not_found": (404, "Nothing is known under this address."),
    "bad_range": (400, "Range is not of the form that it has to have: `bytes=FIRST-LAST`."),
    "range_not_satisfiable": (416, "The file has no such part; Content-Range says how long it is."),
    "method_not_allowed": (405, "This address exists, but not for this method."),
    "unauthorized": (401, "A bearer token is required: `Authorization: Bearer <token>`."),
    "forbidden_origin": (403, "A page of another origin asked for this."),
    "proxied": (403, "The request came through a proxy, which brings anybody, and no token is set; see COGNATE_TOKEN."),
    "misdirected": (421, "The Host header names no host this service answers to; see COGNATE_ALLOWED_HOSTS."),
    "unsupported_media_type": (415, "A body must be application/json."),
    "body_too_large": (413, "The body is larger than 64 KiB."),
    "busy": (503, "The database is locked by another process; try again."),
    "disk_full": (507, "The disk is full: what was asked for was not done. Deleting runs and checkpoints still works, and makes room."),
    "internal": (500, "Something is wrong here that is not the caller's fault; the server's log has the details."),
}


def problem(name: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """The answer for one of PROBLEMS."""
    status, _ = PROBLEMS[name]
    body = {"type": f"/v1/problems/{name}", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return _ProblemResponse(body, status, headers, MEDIA_TYPE)


class _ProblemResponse(JSONResponse):
    """What a request said may be quoted, also where it was no text: half a surrogate pair, which has no bytes."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class ForeignPage(PermissionError):
    """A page of another site asks for what only our own may ask for."""


class BadRange(ValueError):
    """A Range header that names no part of any file."""


class RangeBeyondEnd(ValueError):
    """A Range that begins behind the end of its file."""

    def __init__(self, content_range: str) -> None:
        super().__init__(f"the file has no such part: it is {content_range.rpartition('/')[2]} bytes long")
        self.content_range = content_range


class NoSuchThing(LookupError):
    """A part of a run, a problem, a preset that is not there."""


class FaultOut(BaseModel):
    """One thing wrong with a request."""

    field: str
    message: str


class Problem(BaseModel):
    """Why a request was not carried out (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(json_schema_extra={"enum": [f"/v1/problems/{name}" for name in PROBLEMS]}, description="What explains it.")
    title: str
    status: int
    detail: str
    errors: list[FaultOut] = Field([], description="Of an invalid request or configuration: each fault.")
    state: str = Field("", description="Of an invalid transition: the state the run is in.")
    command: str = Field("", description="Of an invalid transition: what was asked.")
    allowed_commands: list[str] = Field([], description="Of an invalid transition: what can be asked.")
    run_id: str = Field("", description="Of a duplicate external_id: the run that has it.")


def refusals(*names: str) -> dict[int | str, dict[str, Any]]:
    """What a route says under `responses` of the problems it answers; document.py writes them out."""
    answers: dict[int | str, dict[str, Any]] = {}
    for name in names:
        answers.setdefault(PROBLEMS[name][0], {"x-problems": []})["x-problems"].append(name)
    return answers


def install(app: FastAPI) -> None:
    """Answer every failure of `app` with a problem."""
    handlers: dict[Any, Any] = {
        RequestValidationError: _invalid_request,
        HTTPException: _http,
        ConfigError: lambda _, error: problem("invalid_config", str(error), errors=error.problems),
        InvalidTransition: lambda _, error: problem(
            "invalid_transition", str(error), state=error.state, command=error.cause, allowed_commands=allowed_commands(error.state)
        ),
        DuplicateExternalId: lambda _, error: problem("duplicate_external_id", str(error), run_id=error.run_id),
        StateChanged: lambda _, error: problem("state_changed", str(error)),
        KeyReused: lambda _, error: problem("idempotency_key_reused", str(error)),
        StillActive: lambda _, error: problem("run_active", str(error)),
        Precondition: lambda _, error: problem("version_mismatch", str(error)),
        BadRange: lambda _, error: problem("bad_range", str(error)),
        RangeBeyondEnd: lambda _, error: problem("range_not_satisfiable", str(error), {"Content-Range": error.content_range}),
        ForeignPage: lambda _, error: problem("forbidden_origin", str(error)),
        NoSuchGroup: lambda _, error: problem("not_found", str(error)),
        NoCheckpoint: lambda _, error: problem("not_found", str(error)),
        NoSuchJob: lambda _, error: problem("not_found", str(error)),
        NoData: lambda _, error: problem("data_missing", str(error)),
        NotReady: lambda _, error: problem("not_ready", str(error)),
        Offline: lambda _, error: problem("offline", str(error)),
        NoSuchRun: lambda _, error: problem("not_found", str(error)),
        NoSuchThing: lambda _, error: problem("not_found", str(error)),
        OperationalError: lambda request, error: _database(request, error.orig),
        sqlite3.OperationalError: _database,
        OSError: _os,
        Exception: _internal,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    # Without `input` and `ctx`: what was sent is not echoed, and may not even be JSON (NaN).
    errors = [{"field": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]} for fault in error.errors()]
    detail = "; ".join(f"{fault['field']}: {fault['message']}" for fault in errors)
    return problem("invalid_request", detail, errors=errors)


def _http(request: Request, error: HTTPException) -> JSONResponse:
    name = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(error.status_code)
    if name is None:  # the framework's own, such as a body that is not UTF-8
        name = "invalid_request"
    headers = dict(error.headers or {})
    if name == "method_not_allowed":
        headers |= _allow(request)
    return problem(name, str(error.detail), headers)


def _allow(request: Request) -> dict[str, str]:
    """Every method of the path asked for: the framework names those of the first route that has the path."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    methods = {name.upper() for path, known in paths.items() if compile_path(path)[0].match(request.url.path) for name in known}
    return {"Allow": ", ".join(sorted(methods))} if methods else {}


def _database(request: Request, error: Exception) -> JSONResponse:
    if "locked" in str(error):
        return problem("busy", "the database is locked by another process", {"Retry-After": "2"})
    if "full" in str(error):
        return problem("disk_full", "the database cannot grow")
    return _internal(request, error)


def _os(request: Request, error: OSError) -> JSONResponse:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return problem("disk_full", "a file cannot be written")
    return _internal(request, error)


def _internal(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem("internal", "the request failed; see the server's log")
