"""Evaluations of a run's checkpoints on held-out items."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from app.api.common import JOB_ID, LOCATION, Answers, Limit, RunId
from app.api.deps import Idempotent, Service
from app.api.errors import refusals
from app.api.jobs import started
from app.api.schemas.base import Page
from app.api.schemas.jobs import JobOut, job_out
from app.api.schemas.requests import EvaluateIn
from app.services.evaluations import KIND, Wanted
from app.store import jobs, runs

router = APIRouter(prefix="/v1/runs/{run_id}/evaluations", tags=["evaluations"])

_STARTED: Answers = {
    200: {"model": JobOut, "description": "The same evaluation is waiting or at work already.", "headers": LOCATION},
    202: {"headers": LOCATION},
    **refusals("data_missing"),
}


@router.post("", status_code=202, summary="Measure a checkpoint on held-out items, as a job", responses=_STARTED)
def start_evaluation(
    run_id: RunId, service: Service, response: Response, once: Idempotent, body: Annotated[EvaluateIn | None, Body()] = None
) -> JobOut:
    body = body or EvaluateIn()
    wanted = Wanted(body.datasets, body.limit, body.overlap, body.calculator, body.vote)
    return started(service, response, *service.evaluations.start(run_id, body.checkpoint_id, wanted, once))


@router.get("", summary="Evaluations of a run, newest first")
def list_evaluations(
    run_id: RunId, service: Service, limit: Limit = 50, after: Annotated[str | None, Query(pattern=JOB_ID)] = None
) -> Page[JobOut]:
    with service.store.read() as session:
        runs.get(session, run_id)
        found = jobs.page(session, limit + 1, after, kind=KIND, subject=run_id)
        data = [job_out(job) for job in found[:limit]]
    more = len(found) > limit
    return Page(data=data, has_more=more, next_cursor=data[-1].id if more else None)
