"""The fourteen datasets: which are there, with how many rows; and fetching one from the Hugging Face hub."""

from __future__ import annotations

from fastapi import APIRouter, Response

from app.api.deps import Service
from app.api.errors import refusals
from app.api.jobs import started
from app.api.runs import LOCATION, Answers
from app.api.schemas import DatasetsOut, JobOut, datasets_out
from cognate.config import DatasetName

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_STARTED: Answers = {
    200: {"model": JobOut, "description": "It is waiting or at work already.", "headers": LOCATION},
    202: {"headers": LOCATION},
    **refusals("offline"),
}


@router.get("", summary="Datasets that are there, with their rows")
def list_datasets(service: Service) -> DatasetsOut:
    """They are counted by a job: as long as it works, `state` is "counting", and the data are those of the last count, if any."""
    counted = service.datasets.counted()
    if counted.state == "counting":
        service.supervisor.wake()
    return datasets_out(counted)


@router.post("/{name}/fetch", status_code=202, summary="Download a dataset from the Hugging Face hub, as a job", responses=_STARTED)
def fetch_dataset(name: DatasetName, service: Service, response: Response) -> JobOut:
    return started(service, response, *service.datasets.fetch(name))
