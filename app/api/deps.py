"""What endpoints are given: the parts that main.py put together, found on the application's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from app.api.security import Gate
from app.services.hub import Hub
from app.services.runs import RunService
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
    runs: RunService
    gate: Gate


def parts(connection: HTTPConnection) -> Parts:
    return cast(Parts, connection.app.state.parts)


Service = Annotated[Parts, Depends(parts)]
