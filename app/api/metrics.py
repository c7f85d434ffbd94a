"""The metrics of a run, by column."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError

from app.api.deps import Service
from app.api.runs import RunId
from app.api.schemas import MetricsOut
from app.store import metrics, runs
from cognate.metrics import KEYS

router = APIRouter(prefix="/v1/runs", tags=["metrics"])


@router.get("/{run_id}/metrics", summary="Metric rows, by column")
def get_metrics(
    run_id: RunId,
    service: Service,
    keys: Annotated[str | None, Query(description="Comma-separated metric keys; all 37 by default.")] = None,
    first: Annotated[int | None, Query(alias="from", ge=0, description="First step.")] = None,
    last: Annotated[int | None, Query(alias="to", ge=0, description="Last step.")] = None,
    attempts: Annotated[
        Literal["effective", "all"], Query(description="effective: of a step trained again after a resume, the latest.")
    ] = "effective",
) -> MetricsOut:
    wanted = keys.split(",") if keys else list(KEYS)
    if unknown := [key for key in wanted if key not in KEYS]:
        raise RequestValidationError([{"loc": ("query", "keys"), "msg": f"no metric {', '.join(unknown)}; see GET /v1/metrics"}])
    with service.store.read() as session:
        runs.get(session, run_id)
        table = metrics.columns(session, run_id, wanted, first_step=first, last_step=last, effective=attempts == "effective")
    return MetricsOut(run_id=run_id, attempts=attempts, columns=table)
