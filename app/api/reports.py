"""Reports on groups and runs: diversity, the hand-off archive, the training report."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from app.api.common import LOCATION, Answers, GroupId, RunId
from app.api.deps import Idempotent, Service
from app.api.errors import refusals
from app.api.files import BAD_RANGES, Download
from app.api.jobs import started
from app.api.schemas.jobs import DiversityOut, JobOut, diversity_out, job_out
from app.api.schemas.requests import HandoffIn
from app.api.security import refuse_foreign

router = APIRouter(prefix="/v1", tags=["reports"])

# A document of its own: it may have its style, and nothing else; it runs nothing and loads nothing.
POLICY = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox", "Vary": "Accept"}
_FORMS = {"text/html": "report.html", "text/markdown": "report.md"}

_STARTED: Answers = {
    200: {"model": JobOut, "description": "The same is waiting or at work already.", "headers": LOCATION},
    202: {"headers": LOCATION},
    **refusals("not_ready"),
}
_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}, "description": "The archive."},
    206: {
        "content": {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}},
        "description": "The part that Range asks for.",
    },
    **BAD_RANGES,
    **refusals("not_ready"),
}
_REPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {form: {"schema": {"type": "string"}} for form in _FORMS},
        "description": "HTML, or Markdown where Accept prefers it.",
    },
    202: {"model": JobOut, "description": "It is being made by this job; ask again.", "headers": LOCATION},
    **refusals("not_ready"),
}


@router.get("/groups/{group_id}/diversity", summary="How different the group's models are, as last measured")
def get_diversity(group_id: GroupId, service: Service) -> DiversityOut:
    return diversity_out(group_id, service.reports.diversity(group_id))


@router.post("/groups/{group_id}/diversity", status_code=202, summary="Measure the group's best checkpoints, as a job", responses=_STARTED)
def measure_diversity(group_id: GroupId, service: Service, response: Response, once: Idempotent) -> JobOut:
    return started(service, response, *service.reports.measure_diversity(group_id, once))


@router.get(
    "/groups/{group_id}/handoff",
    summary="The archive for Phase 2, when it holds the best checkpoints and the results that there are now; takes Range",
    response_class=Download,
    responses=_ARCHIVE,
)
def get_handoff(group_id: GroupId, service: Service) -> Download:
    job, archive = service.reports.handoff(group_id)
    assert job.result is not None, "only a completed one is given out"
    headers = {"ETag": f'"{job.result["sha256"]}"'}
    return Download(archive, media_type="application/x-tar", filename=f"cognate-phase1-{group_id[-6:]}.tar", headers=headers)


@router.post("/groups/{group_id}/handoff", status_code=202, summary="Build the archive for Phase 2, as a job", responses=_STARTED)
def build_handoff(
    group_id: GroupId, service: Service, response: Response, once: Idempotent, body: Annotated[HandoffIn | None, Body()] = None
) -> JobOut:
    return started(service, response, *service.reports.build_handoff(group_id, (body or HandoffIn()).allow_any_size, once))


@router.get("/groups/{group_id}/report", summary="The training report of the group's runs", response_class=Response, responses=_REPORT)
def get_group_report(group_id: GroupId, request: Request, service: Service) -> Response:
    return _report(service, request, group_id)


@router.get("/runs/{run_id}/report", summary="The training report of a run", response_class=Response, responses=_REPORT)
def get_run_report(run_id: RunId, request: Request, service: Service) -> Response:
    return _report(service, request, run_id)


def _report(service: Service, request: Request, subject: str) -> Response:
    refuse_foreign(request)
    job, folder = service.reports.report(subject)
    if folder is None:
        service.supervisor.wake()
        # Refresh: a browser that was led here shows the report once it is there.
        headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "2", "Refresh": "2"}
        return JSONResponse(job_out(job).model_dump(mode="json"), 202, headers)
    form = _preferred(request.headers.get("accept", ""))
    return Response((folder / _FORMS[form]).read_bytes(), media_type=f"{form}; charset=utf-8", headers=POLICY)


def _preferred(accepted: str) -> str:
    return "text/markdown" if "text/markdown" in accepted and "text/html" not in accepted else "text/html"
