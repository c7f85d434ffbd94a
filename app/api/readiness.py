"""Whether a preset can be trained here, what it would take, what to expect of it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.common import LOCATION
from app.api.deps import Idempotent, Service
from app.api.errors import refusals
from app.api.jobs import started
from app.api.schemas.jobs import JobOut, job_out
from app.api.schemas.together import DeviceOut
from app.api.security import is_foreign
from cognate.config import PRESETS, Recipe
from cognate.wandb_mode import Mode

router = APIRouter(prefix="/v1/readiness", tags=["system"])

Preset = Annotated[str, Query(max_length=40, description="One of GET /v1/presets.", json_schema_extra={"enum": list(PRESETS)})]

RecipeChoice = Annotated[Recipe, Query(description="By which recipe; only a specialist has a measured one.")]


class WandbOut(BaseModel):
    installed: bool
    key: bool = Field(description="Whether there is one; never which.")
    wanted: str = Field(description="What the preset says.")
    mode: Mode = Field(description="What would be done.")


class LiveOut(BaseModel):
    """As of this answer."""

    disk_free_bytes: int
    devices: list[DeviceOut]
    wandb: WandbOut
    data_dir: bool = Field(description="Whether the service was started with a data folder.")


class ReadinessOut(BaseModel):
    preset: str
    recipe: Recipe
    state: Literal["measured", "measuring", "failed", "absent"] = Field(
        description="Of the measurement: current, at work, given up; absent: none, and this request may not begin one."
    )
    verdict: Literal["ready", "ready_with_warnings", "not_ready"] | None = Field(description="Of the report, where there is one.")
    is_current: bool = Field(description="Whether the report still holds: same data, configuration, version, devices, not a day old.")
    measured_at: datetime | None
    age_s: float | None
    job: JobOut | None = Field(description="The job that measures, or failed to.")
    live: LiveOut
    report: dict[str, Any] | None = Field(description="The newest measurement; docs/readiness.md explains its parts.")


@router.get(
    "", summary="Readiness to train a preset; begins to measure where nothing current is known", responses=refusals("invalid_config")
)
def get_readiness(request: Request, service: Service, preset: Preset = "reasoning", recipe: RecipeChoice = "report") -> ReadinessOut:
    # A page of another site can send a GET unasked; it must not set anything to work.
    may_measure = not is_foreign(request.headers, request.headers.get("host", ""))
    found = service.readiness.look(preset, recipe, may_measure=may_measure)
    measured = found.measured
    report = measured.result if measured else None
    return ReadinessOut(
        preset=preset,
        recipe=recipe,
        state=found.state,
        verdict=report["verdict"] if report else None,
        is_current=found.is_current,
        measured_at=measured.ended_at if measured else None,
        age_s=time.time() - measured.ended_at if measured and measured.ended_at else None,
        job=job_out(found.job) if found.job else None,
        live=LiveOut(**found.live),
        report=report,
    )


@router.post(
    "",
    status_code=202,
    summary="Measure it now, as a job",
    responses={
        200: {"model": JobOut, "description": "The same measurement is waiting or at work already.", "headers": LOCATION},
        202: {"headers": LOCATION},
        **refusals("invalid_config"),
    },
)
def measure_readiness(
    service: Service, response: Response, once: Idempotent, preset: Preset = "reasoning", recipe: RecipeChoice = "report"
) -> JobOut:
    return started(service, response, *service.readiness.measure(preset, recipe, once))
