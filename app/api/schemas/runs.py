"""Runs and what belongs to one: events, samples, attempts, checkpoints, its log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.schemas.base import Value, fields_of, instant
from app.services.ailments import Ailment, Severity
from app.services.lifecycle import State, allowed_commands
from app.store.tables import Attempt, Checkpoint, Event, Run
from cognate.config import SPECIALISTS
from cognate.metrics import EXPECTED_LOSS


class Progress(BaseModel):
    step: int
    total_steps: int | None
    epoch: float | None = None
    percent: float | None = None
    eta_s: float | None = None
    tokens_per_s: float | None = Field(None, description="On average since the last row of metrics, as step_time_s is.")
    step_time_s: float | None = Field(None, description="Seconds a step, without validation, evaluation and checkpoints.")
    skipped_steps: int | None = None


class AlertOut(BaseModel):
    """What ails a run now; docs/health.md."""

    kind: Ailment
    severity: Severity
    message: str
    evidence: dict[str, Any] = Field(description="The numbers and steps that it rests on.")
    remedy: str
    since_step: int | None
    at: datetime


class ExpectedLoss(BaseModel):
    """Between which losses a specialist is expected to be at the end of an epoch."""

    epoch: int
    step: int
    low: float
    high: float


class RunOut(BaseModel):
    id: str
    name: str
    preset: str
    tags: list[str]
    external_id: str | None
    state: State
    state_reason: str | None
    state_detail: str | None
    phase: str | None
    allowed_commands: list[str]
    version: int
    attempt: int
    queue_position: int | None = Field(description="1 for the run that is launched next.")
    priority: int
    notes: str | None
    group_id: str | None
    forked_from: dict[str, Any] | None = Field(description="run_id, checkpoint_id and step of the checkpoint it went on from.")
    auto_resume: int = Field(description="How often it is launched again by itself without new progress, when its worker is lost.")
    auto_resumes: int = Field(description="How often in a row it has been.")
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: Progress | None
    metrics: dict[str, Value] = Field(description="The newest value of each metric measured so far.")
    alert_count: int = Field(description="How many things ail it now.")


class RunDetailOut(RunOut):
    config: dict[str, Any]
    plan: dict[str, Any] | None = Field(description="Curriculum, steps and parameters, once the worker has loaded its data.")
    alerts: list[AlertOut]
    rows_at_most: int | None = Field(
        description="Rows of a batch that may go through the model at once, since memory did not suffice for more."
    )
    expected_loss: list[ExpectedLoss] = Field(description="Of a specialist, by the end of an epoch, as far as its plan goes.")


class DryRunOut(BaseModel):
    dry_run: Literal[True] = True
    config: dict[str, Any]


class EventOut(BaseModel):
    seq: int
    attempt: int
    kind: str
    at: datetime
    step: int | None
    data: dict[str, Any]


class SampleOut(BaseModel):
    """What the model wrote after a held-out prompt at the end of an epoch."""

    seq: int
    attempt: int
    step: int
    epoch: float
    dataset: str
    prompt: str
    text: str = Field(description="Up to its end token, or cut off.")
    expected: str = Field(description="How the document goes on, for as long as the model may write.")
    at: datetime


class AttemptOut(BaseModel):
    number: int
    device: str
    launched_at: datetime
    ended_at: datetime | None
    resumed_from_step: int | None
    ending: str | None
    exit_code: int | None
    exit_signal: int | None


class CheckpointOut(BaseModel):
    id: str
    run_id: str
    is_pinned: bool
    attempt: int
    step: int
    name: str
    bytes: int
    files: dict[str, Any]
    created_at: datetime
    removed_at: datetime | None


class LogOut(BaseModel):
    attempt: int
    text: str
    next_offset: int
    size: int


_COUNTS = ("step", "total_steps", "skipped_steps")  # whole numbers; the rest of a progress is not
_INSTANTS = ("created_at", "updated_at", "started_at", "ended_at")
_RUN_FIELDS = tuple(RunOut.model_fields)


def run_out(run: Run | Row[Any], queue: Sequence[str] = ()) -> RunOut:
    return RunOut(**_run_fields(run, _position(run, queue)))


def run_detail_out(run: Run, queue: Sequence[str] = ()) -> RunDetailOut:
    return RunDetailOut(**_run_fields(run, _position(run, queue)), **_detail(run))


def _detail(run: Run | SimpleNamespace) -> dict[str, Any]:
    """What RunDetailOut has besides, in its order."""
    return {
        "config": run.config,
        "plan": run.plan,
        "alerts": [{**alert, "at": instant(alert["at"])} for alert in run.alerts],
        "rows_at_most": run.rows_at_most,
        "expected_loss": _expected_loss(run),
    }


def _expected_loss(run: Run | SimpleNamespace) -> list[dict[str, Any]]:
    if run.preset not in SPECIALISTS or run.plan is None:
        return []
    steps = run.plan.get("steps_per_epoch") or []
    return [
        {"epoch": epoch, "step": sum(steps[:epoch]), "low": low, "high": high}
        for epoch, (low, high) in EXPECTED_LOSS.items()
        if epoch <= len(steps)
    ]


def run_json(run: SimpleNamespace) -> bytes:
    """What RunDetailOut would be as JSON, without its checks: these values were checked when they were written."""
    return orjson.dumps({**_run_fields(run, run.queue_position), **_detail(run)}, option=orjson.OPT_UTC_Z)


def runs_json(found: Sequence[Row[Any]], queue: Sequence[str], *, has_more: bool) -> bytes:
    """What a Page of RunOut would be as JSON, in the same way."""
    positions = {run_id: place for place, run_id in enumerate(queue, 1)}
    data = [_run_fields(run, positions.get(run.id)) for run in found]
    return orjson.dumps({"data": data, "has_more": has_more, "next_cursor": found[-1].id if has_more else None}, option=orjson.OPT_UTC_Z)


def _position(run: Run | Row[Any], queue: Sequence[str]) -> int | None:
    return queue.index(run.id) + 1 if run.id in queue else None


def _run_fields(run: Run | Row[Any] | SimpleNamespace, position: int | None) -> dict[str, Any]:
    """In the order and the types of RunOut."""
    made: dict[str, Any] = {
        "allowed_commands": allowed_commands(State(run.state)),
        "queue_position": position,
        "progress": _progress(run),
        "metrics": {key: value if isinstance(value, str) else float(value) for key, value in (run.latest or {}).items()},
        "alert_count": len(run.alerts),
    }
    made |= {name: instant(getattr(run, name)) for name in _INSTANTS}
    return {name: made[name] if name in made else getattr(run, name) for name in _RUN_FIELDS}


def _progress(run: Run | Row[Any] | SimpleNamespace) -> dict[str, Any] | None:
    if run.progress is None:
        return _progress_of({"step": 0, "total_steps": run.plan["total_steps"]}, None) if run.plan else None
    return _progress_of(run.progress, 100 * run.progress["step"] / run.progress["total_steps"])


def _progress_of(told: dict[str, Any], percent: float | None) -> dict[str, Any]:
    fields = {name: told.get(name) for name in Progress.model_fields}
    numbers = {name: float(value) for name, value in fields.items() if isinstance(value, int) and name not in _COUNTS}
    return {**fields, **numbers, "percent": percent}


def event_out(event: Event) -> EventOut:
    return EventOut(**fields_of(event, EventOut))


def sample_out(event: Event) -> SampleOut:
    return SampleOut(**{**event.data, **fields_of(event, EventOut)})


def attempt_out(attempt: Attempt) -> AttemptOut:
    return AttemptOut(**fields_of(attempt, AttemptOut))


def checkpoint_out(checkpoint: Checkpoint) -> CheckpointOut:
    return CheckpointOut(**fields_of(checkpoint, CheckpointOut))
