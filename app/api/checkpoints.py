"""Checkpoints: look at one, fetch its files, verify, pin, delete. Which file is meant is looked up, never built from the request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Path as PathParameter
from pydantic import BaseModel

from app.api.deps import Parts, Service
from app.api.errors import NoSuchThing, refusals
from app.api.files import BAD_RANGES, Download
from app.api.schemas.requests import PinIn
from app.api.schemas.runs import CheckpointOut, checkpoint_out
from app.store import runs
from cognate.rundir import MANIFEST, CorruptCheckpoint, RunDir, verify_checkpoint

router = APIRouter(prefix="/v1/checkpoints", tags=["checkpoints"])

CheckpointId = Annotated[str, PathParameter(pattern=r"^ckpt_[0-9a-f-]{36}$")]
File = Literal[
    "model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "config.json", "manifest.json"
]

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"content": _BYTES, "description": "The file."},
    206: {"content": _BYTES, "description": "The part that Range asks for."},
    **BAD_RANGES,
}


class VerificationOut(BaseModel):
    """Whether every file has the size and the SHA-256 of the manifest; `detail` says which has not."""

    ok: bool
    detail: str | None


@router.get("/{checkpoint_id}", summary="One checkpoint, with the sha-256 of its files")
def get_checkpoint(checkpoint_id: CheckpointId, service: Service) -> CheckpointOut:
    with service.store.read() as session:
        return checkpoint_out(runs.checkpoint(session, checkpoint_id))


@router.get("/{checkpoint_id}/download", summary="One of its files; takes Range", response_class=Download, responses=_FILE)
def download_checkpoint(
    checkpoint_id: CheckpointId, service: Service, file: Annotated[File, Query(description="Which one.")] = "model.safetensors"
) -> Download:
    path = _path(service, checkpoint_id)
    if not (path / file).is_file():
        raise NoSuchThing(f"checkpoint {checkpoint_id} has no {file}")
    return Download(path / file, media_type="application/octet-stream", filename=f"{path.name}-{file}")


@router.post("/{checkpoint_id}/verify", summary="Compute its digests anew and compare them with the manifest")
def verify_files(checkpoint_id: CheckpointId, service: Service) -> VerificationOut:
    try:
        verify_checkpoint(_path(service, checkpoint_id))
    except CorruptCheckpoint as error:
        return VerificationOut(ok=False, detail=str(error))
    return VerificationOut(ok=True, detail=None)


@router.patch("/{checkpoint_id}", summary="Pin it, or let it go; its run's stream tells of it")
def edit_checkpoint(checkpoint_id: CheckpointId, body: PinIn, service: Service) -> CheckpointOut:
    return checkpoint_out(service.runs.pin(checkpoint_id, body.pinned))


@router.delete(
    "/{checkpoint_id}",
    status_code=204,
    summary="Delete it; its run must be at rest, and it not pinned; the run's stream tells of it",
    responses=refusals("run_active"),
)
def delete_checkpoint(checkpoint_id: CheckpointId, service: Service) -> None:
    service.runs.delete_checkpoint(checkpoint_id)


def _path(service: Parts, checkpoint_id: str) -> Path:
    with service.store.read() as session:
        found = runs.checkpoint(session, checkpoint_id)
        path = RunDir(service.settings.runs / found.run_id).checkpoint(found.step)
    if not (path / MANIFEST).is_file():
        raise NoSuchThing(f"the files of checkpoint {checkpoint_id} are gone")
    return path
