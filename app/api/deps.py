"""What endpoints are given: the parts that main.py put together, found on the application's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Header, Request
from starlette.requests import HTTPConnection

from app.api.security import Gate
from app.services.datasets import DatasetService
from app.services.evaluations import EvaluationService
from app.services.hub import Hub
from app.services.jobs import JobService
from app.services.mirrors import Mirrors
from app.services.readiness import ReadinessService
from app.services.reports import ReportService
from app.services.runs import Once, RunService
from app.services.supervisor import Supervisor
from app.settings import Settings
from app.store.engine import Store


@dataclass(frozen=True)
class Parts:
    """The running service."""

    settings: Settings
    store: Store
    hub: Hub
    supervisor: Supervisor
    mirrors: Mirrors
    runs: RunService
    jobs: JobService
    evaluations: EvaluationService
    reports: ReportService
    readiness: ReadinessService
    datasets: DatasetService
    gate: Gate


def parts(connection: HTTPConnection) -> Parts:
    return cast(Parts, connection.app.state.parts)


async def _parts(connection: HTTPConnection) -> Parts:
    """As a coroutine: a dependency that is not one is called in a thread."""
    return parts(connection)


Service = Annotated[Parts, Depends(_parts)]


async def once(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[\x21-\x7e]{1,200}$", description="Makes the request safe to repeat: for a day it takes effect once."),
    ] = None,
) -> Once | None:
    if idempotency_key is None:
        return None
    return Once(idempotency_key, request.method, request.url.path + "?" + request.url.query, await request.body())


Idempotent = Annotated[Once | None, Depends(once)]


async def expected_version(
    if_match: Annotated[
        str | None, Header(max_length=100, description="The ETag of the version that is meant; another one is 412.")
    ] = None,
) -> int | None:
    """The version in an ETag, which is "version.rest"; None: any."""
    if if_match is None or if_match.strip() == "*":
        return None
    number = if_match.strip().removeprefix("W/").strip('"').partition(".")[0]
    return int(number) if number.isascii() and number.isdigit() and len(number) < 18 else -1


ExpectedVersion = Annotated[int | None, Depends(expected_version)]
