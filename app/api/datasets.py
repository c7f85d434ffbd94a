"""The fourteen datasets: which are there, with how many rows; and fetching one from the Hugging Face hub."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from app.api.common import LOCATION, Answers
from app.api.deps import Idempotent, Service
from app.api.errors import refusals
from app.api.jobs import started
from app.api.schemas.base import instant
from app.api.schemas.jobs import JobOut
from app.api.security import refuse_foreign
from app.services.datasets import Counted
from cognate.config import DatasetName

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_STARTED: Answers = {
    200: {"model": JobOut, "description": "It is waiting or at work already.", "headers": LOCATION},
    202: {"headers": LOCATION},
    **refusals("offline"),
}


class ShortfallOut(BaseModel):
    """A split with fewer rows than the hub has, and than would be used."""

    split: str
    rows: int
    hub_rows: int


class DatasetOut(BaseModel):
    name: DatasetName
    category: str
    stage: int = Field(description="From which stage of the curriculum it is trained on.")
    held_out: str = Field(description="Where its held-out rows come from: its own `split`, 5 % by `hash`, or the `rest` behind the limit.")
    folder: str = Field(description="Its folder inside a data folder.")
    hub: str = Field(description="Its name on the Hugging Face hub.")
    revision: str | None = Field(description="The commit that is fetched; null where none is pinned: the newest.")
    licence: str
    present: bool
    origin: Literal["local", "fetched"] | None = Field(description="Of the copy that runs use: COGNATE_DATA_DIR, or fetched from the hub.")
    missing_files: list[str] = Field(description="What the copy that lacks least lacks.")
    train: int = Field(description="Rows of the files it is trained on; so for `validation` and `test`.")
    validation: int
    test: int
    samples: int = Field(description="Rows selected for training, before held-out rows and duplicates are taken out.")
    without_passage: int = Field(description="Of HotpotQA's samples those that are a bare question.")
    partial: list[ShortfallOut]
    sha256: str | None = Field(description="Over the digests of all its files.")
    commit: str | None = Field(description="Of a fetched one.")
    damage: str | None = Field(description="Why it cannot be read.")


class ExtraOut(BaseModel):
    """A file of the user's own, which `data.extra` can name."""

    name: str
    samples: int
    malformed: int
    sha256: str
    damage: str | None


class DatasetsOut(BaseModel):
    state: Literal["ready", "counting", "failed"]
    job_id: str = Field(description="The job that counted, counts, or failed to.")
    detail: str | None = Field(description="Why counting failed.")
    counted_at: datetime | None = Field(description="When the data below were counted; null where they never were.")
    data: list[DatasetOut]
    stage_samples: dict[str, dict[str, int]] = Field(description='Samples by stage: of "all" that is there, and of "six_datasets".')
    extra: list[ExtraOut]


@router.get("", summary="Datasets that are there, with their rows", dependencies=[Depends(refuse_foreign)])
def list_datasets(service: Service) -> DatasetsOut:
    """They are counted by a job: as long as it works, `state` is "counting", and the data are those of the last count, if any."""
    counted = service.datasets.counted()
    if counted.state == "counting":
        service.supervisor.wake()
    return _datasets_out(counted)


@router.post("/{name}/fetch", status_code=202, summary="Download a dataset from the Hugging Face hub, as a job", responses=_STARTED)
def fetch_dataset(name: DatasetName, service: Service, response: Response, once: Idempotent) -> JobOut:
    return started(service, response, *service.datasets.fetch(name, once))


def _datasets_out(counted: Counted) -> DatasetsOut:
    known = counted.known
    made: dict[str, Any] = (known.result if known is not None else None) or {}
    return DatasetsOut(
        state=counted.state,
        job_id=counted.job.id,
        detail=counted.job.detail,
        counted_at=instant(known.ended_at) if known is not None else None,
        data=[DatasetOut(**row) for row in made.get("datasets", [])],
        stage_samples=made.get("stage_samples", {}),
        extra=[ExtraOut(**each) for each in made.get("extra", [])],
    )
