"""Jobs, and what a job measures."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.base import fields_of, instant
from app.services.reports import Measured, Standing
from app.store.tables import Job

JobState = Literal["queued", "running", "completed", "failed", "cancelled"]


class JobProgress(BaseModel):
    message: str
    fraction: float | None = Field(description="Share of the work that is done, 0..1, where it is known.")


class JobOut(BaseModel):
    id: str
    kind: str
    subject: str = Field(description="What it is about: the id of a run or group, the name of a dataset or preset.")
    spec: dict[str, Any]
    state: JobState
    device: str | None
    progress: JobProgress | None
    result: dict[str, Any] | None = Field(description="Of a completed one.")
    reason: str | None = Field(description="Of a failed one, in one word.")
    detail: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class DiversityOut(BaseModel):
    group_id: str
    state: Standing = Field(description="failed: no measurement came about; `job` says why.")
    result: dict[str, Any] | None = Field(description="As last measured: members, pairs, the three metrics, the required order.")
    measured_at: datetime | None
    job: JobOut | None = Field(description="The newest job about it.")


def job_out(job: Job) -> JobOut:
    return JobOut(**fields_of(job, JobOut))


def diversity_out(group_id: str, found: Measured) -> DiversityOut:
    measured_at = None if found.measured_at is None else instant(found.measured_at)
    job = None if found.job is None else job_out(found.job)
    return DiversityOut(group_id=group_id, state=found.state, result=found.result, measured_at=measured_at, job=job)
