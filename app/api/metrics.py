"""The metrics of runs: rows by column, the same thinned to buckets, or rows as CSV.

Answers are encoded as the store returns them, past the models that describe them here: 20,000 rows of 37 metrics are
740,000 numbers, and all of them come from the database.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from sqlmodel import Session
from starlette.responses import Response, StreamingResponse

from app.api.common import RunId
from app.api.deps import Parts, Service
from app.api.schemas.base import Value
from app.store import metrics, runs
from cognate.metrics import KEYS

router = APIRouter(prefix="/v1", tags=["metrics"])

CSV_ROWS = 1000  # read at a time: a slow client must not hold a view of the database open
OVERLAY_RUNS = 50

Keys = Annotated[str | None, Query(description="Comma-separated metric keys; all 37 by default.")]
First = Annotated[int, Query(alias="from", ge=0, le=metrics.LAST_STEP, description="First step.")]
Last = Annotated[int, Query(alias="to", ge=0, le=metrics.LAST_STEP, description="Last step.")]
Attempts = Annotated[Literal["effective", "all"], Query(description="effective: of a step trained again after a resume, the latest.")]
_MAX_POINTS = Query(ge=1, le=10_000, description="Thin the rows to at most so many buckets of steps.")


class MetricsOut(BaseModel):
    """Metric rows by column: `columns["loss"][i]` belongs to step `columns["step"][i]`; null was not measured."""

    run_id: str
    attempts: Literal["effective", "all"]
    columns: dict[str, list[Value | int | None]]


class BucketsOut(BaseModel):
    """One metric, by bucket; null where it has no such number."""

    min: list[float | None] = Field(description="Of the finite values, as max.")
    max: list[float | None]
    last: list[Value | None] = Field(description="The newest measurement, finite or not.")
    last_step: list[int | None]
    nonfinite: list[int] = Field(description="How many values were NaN or infinite.")


class ThinnedOut(BaseModel):
    """Metric rows in buckets: `metrics["loss"]["max"][i]` is over steps `step[i]` to `step[i] + bucket_steps - 1`."""

    run_id: str
    attempts: Literal["effective", "all"]
    thinned: Literal[True]
    bucket_steps: int = Field(description="A power of two. Each bucket begins at a multiple of it, so rows to come change the last alone.")
    step: list[int]
    rows: list[int] = Field(description="Rows in each bucket.")
    metrics: dict[str, BucketsOut]


class OverlayOut(BaseModel):
    data: list[ThinnedOut]


@router.get(
    "/runs/{run_id}/metrics",
    response_model=MetricsOut | ThinnedOut,
    responses={200: {"content": {"text/csv": {}}}},
    summary="Metric rows by column, exact or thinned; or as CSV",
)
def get_metrics(
    request: Request,
    run_id: RunId,
    service: Service,
    keys: Keys = None,
    first: First = 0,
    last: Last = metrics.LAST_STEP,
    attempts: Attempts = "effective",
    max_points: Annotated[int | None, _MAX_POINTS] = None,
    form: Annotated[Literal["json", "csv"] | None, Query(alias="format", description="Or `Accept: text/csv`.")] = None,
) -> Response:
    wanted, steps, effective = _wanted(keys), (first, last), attempts == "effective"
    with service.store.read() as session:
        runs.get(session, run_id)
        if form == "csv" or (form is None and _asks_for_csv(request)):
            if max_points is not None:
                raise _refused("max_points", "CSV holds the exact rows; leave max_points out, or ask for JSON")
            headers = {"Content-Disposition": f'attachment; filename="{run_id}.csv"', "Vary": "Accept"}
            return StreamingResponse(_csv(service, run_id, wanted, steps, effective), media_type="text/csv", headers=headers)
        if max_points is not None:
            return _json(_thinned(session, run_id, wanted, max_points, steps, attempts))
        columns = metrics.columns(session, run_id, wanted, steps=steps, effective=effective)
    return _json({"run_id": run_id, "attempts": attempts, "columns": columns})


@router.get("/metrics/query", response_model=OverlayOut, summary="The same metrics of several runs, thinned")
def query_metrics(
    service: Service,
    run_ids: Annotated[str, Query(description=f"Comma-separated, at most {OVERLAY_RUNS}.")],
    keys: Annotated[str, Query(description="Comma-separated metric keys.")],
    first: First = 0,
    last: Last = metrics.LAST_STEP,
    attempts: Attempts = "effective",
    max_points: Annotated[int, _MAX_POINTS] = 500,
) -> Response:
    wanted, ids = _wanted(keys), list(dict.fromkeys(run_ids.split(",")))
    if len(ids) > OVERLAY_RUNS:
        raise _refused("run_ids", f"{len(ids)} runs; at most {OVERLAY_RUNS} at a time")
    with service.store.read() as session:
        for run_id in ids:
            runs.get(session, run_id)
        return _json({"data": [_thinned(session, run_id, wanted, max_points, (first, last), attempts) for run_id in ids]})


def _thinned(
    session: Session, run_id: str, keys: list[str], max_points: int, steps: tuple[int, int], attempts: Literal["effective", "all"]
) -> dict[str, Any]:
    """A ThinnedOut."""
    table = metrics.thinned(session, run_id, keys, max_points, steps=steps, effective=attempts == "effective")
    return {"run_id": run_id, "attempts": attempts, "thinned": True, **vars(table)}


def _csv(service: Parts, run_id: str, keys: list[str], steps: tuple[int, int], effective: bool) -> Iterator[str]:
    """The lines, page by page; a row that arrives meanwhile is among them if its turn is still to come."""
    page: list[Any] = [(*metrics.AXES, *keys)]
    behind = None
    while page:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(page)
        yield text.getvalue()
        with service.store.read() as session:
            page = metrics.page(session, run_id, keys, CSV_ROWS, behind, steps=steps, effective=effective)
        behind = page[-1] if page else None


def _wanted(keys: str | None) -> list[str]:
    """The metrics asked for, each once; raises RequestValidationError for one there is not."""
    wanted = list(dict.fromkeys(keys.split(","))) if keys else list(KEYS)
    if unknown := [key for key in wanted if key not in KEYS]:
        raise _refused("keys", f"no metric {', '.join(unknown)}; see GET /v1/metrics")
    return wanted


def _asks_for_csv(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "text/csv" in accepted and "application/json" not in accepted


def _refused(parameter: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", parameter), "msg": message}])


def _json(answer: dict[str, Any]) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json", headers={"Vary": "Accept"})
