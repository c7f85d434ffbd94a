"""Whether the service is alive and ready, and what it is."""

from __future__ import annotations

import shutil
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError

from app.api.deps import Service
from app.api.schemas.requests import QueueIn
from app.api.schemas.runs import run_out
from app.api.schemas.together import DeviceOut, QueueOut
from app.api.security import BODY_LIMIT
from app.services.lifecycle import State
from app.store import runs
from app.store.engine import Message
from cognate import __version__

router = APIRouter(tags=["system"])

DISK_FLOOR_BYTES = 1 << 30


@router.get("/healthz", summary="The process answers")
def healthz() -> dict[str, str]:
    return {"status": "alive"}


class ReadyOut(BaseModel):
    status: Literal["ready", "not ready"]
    checks: dict[str, dict[str, Any]] = Field(description="Of database, disk, supervisor and devices: `ok`, and what was seen.")


@router.get(
    "/readyz",
    summary="Database, disk, supervisor and devices are fit to work",
    response_model=ReadyOut,
    responses={503: {"model": ReadyOut, "description": "One of them is not."}},
)
def readyz(service: Service, response: Response) -> dict[str, Any]:
    checks = {
        "database": _database(service),
        "disk": _disk(service),
        "supervisor": _supervisor(service),
        "devices": _devices(service),
    }
    ready = all(check["ok"] for check in checks.values())
    response.status_code = 200 if ready else 503
    return {"status": "ready" if ready else "not ready", "checks": checks}


@router.get("/v1/info", summary="Version, limits, devices")
def get_info(service: Service) -> dict[str, Any]:
    with service.store.read() as session:
        count = runs.count(session)
    return {
        "name": "cognate",
        "version": __version__,
        "cursor_epoch": service.store.epoch,
        "slots": service.supervisor.slots(),
        "data_dir": service.settings.data_dir is not None,
        "runs": count,
        "limits": {"body_bytes": BODY_LIMIT},
        "authentication": service.gate.requires_token,
    }


@router.get("/v1/queue", summary="Queued runs in the order in which they will be launched")
def get_queue(service: Service) -> QueueOut:
    with service.store.read() as session:
        queue = runs.queue(session)
        return QueueOut(held=runs.is_held(session), data=[run_out(run, queue) for run in runs.in_states(session, [State.QUEUED])])


@router.put("/v1/queue", summary="Hold queued runs back, or let them go; streams tell of it")
def put_queue(body: QueueIn, service: Service) -> QueueOut:
    with service.store.write() as write:
        runs.hold(write, body.held)
        write.tell(Message(0, "", "queue", {"held": body.held}))
    service.supervisor.wake()
    return get_queue(service)


@router.get("/v1/devices", summary="Where runs and jobs can be at work, and which ones are")
def list_devices(service: Service) -> dict[str, list[DeviceOut]]:
    holders = service.supervisor.holders()
    return {"data": [DeviceOut(**holder._asdict(), **service.supervisor.describe(holder.slot)) for holder in holders]}


def _database(service: Service) -> dict[str, Any]:
    try:
        service.store.check()
    except SQLAlchemyError as error:
        return {"ok": False, "detail": f"cannot write: {type(error).__name__}"}
    return {"ok": True, "detail": "writable"}


def _disk(service: Service) -> dict[str, Any]:
    free = shutil.disk_usage(service.settings.home).free
    return {"ok": free > DISK_FLOOR_BYTES, "free_bytes": free}


def _supervisor(service: Service) -> dict[str, Any]:
    alive = service.supervisor.is_alive
    return {"ok": alive, "detail": "looking" if alive else "has not looked at the workers for ten seconds"}


def _devices(service: Service) -> dict[str, Any]:
    if trouble := service.supervisor.trouble():
        return {"ok": False, "detail": f"the driver does not tell of its GPUs: {trouble}"}
    return {"ok": True, "detail": ", ".join(service.supervisor.slots()) or "none"}
