"""Jobs: evaluations, reports and other work beside the training; looked at, and given up."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.api.common import JOB_ID, JobId, Limit
from app.api.deps import Parts, Service
from app.api.schemas.base import Page
from app.api.schemas.jobs import JobOut, JobState, job_out
from app.store import jobs
from app.store.tables import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("", summary="Jobs, newest first")
def list_jobs(
    service: Service,
    limit: Limit = 50,
    after: Annotated[str | None, Query(pattern=JOB_ID)] = None,
    kind: Annotated[str | None, Query(max_length=40)] = None,
    subject: Annotated[str | None, Query(max_length=80)] = None,
    state: JobState | None = None,
) -> Page[JobOut]:
    with service.store.read() as session:
        found = jobs.page(session, limit + 1, after, kind=kind, subject=subject, state=state)
        data = [job_out(job) for job in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=data[-1].id if more else None)


@router.get("/{job_id}", summary="One job, with what came of it")
def get_job(job_id: JobId, service: Service) -> JobOut:
    with service.store.read() as session:
        return job_out(jobs.get(session, job_id))


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Give a job up",
    responses={200: {"model": JobOut, "description": "It had ended, or was being given up already; nothing changed."}},
)
def cancel_job(job_id: JobId, service: Service, response: Response) -> JobOut:
    job, changed = service.jobs.cancel(job_id)
    if changed:
        service.supervisor.wake()
    else:
        response.status_code = 200
    return job_out(job)


def started(service: Parts, response: Response, job: Job, is_new: bool) -> JobOut:
    """The answer of an endpoint that starts a job, or finds it started: 202 or 200, with its address."""
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    if is_new:
        service.supervisor.wake()
    else:
        response.status_code = 200
    return job_out(job)
