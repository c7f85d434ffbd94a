"""The shapes of requests and answers. Times are RFC 3339 UTC; numbers that are not finite are their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy import Row

from app.services.ailments import Ailment, Severity
from app.services.datasets import Counted
from app.services.lifecycle import State, allowed_commands
from app.services.reports import Measured, Standing
from app.store.tables import Attempt, Checkpoint, Event, Job, Run, RunGroup
from cognate.config import SPECIALISTS, DatasetName
from cognate.metrics import EXPECTED_LOSS

Item = TypeVar("Item")
Value = float | Literal["NaN", "Infinity", "-Infinity"]
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[\w .()+\-]+$")]
CheckpointId = Annotated[str, Field(pattern=r"^ckpt_[0-9a-f-]{36}$")]
Tag = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[\w.:/\-]+$")]


def _without_default(schema: dict[str, Any]) -> None:
    del schema["default"]


_Unset: Any = Field(None, json_schema_extra=_without_default)  # it stays as it is: no null


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("seed", "priority", "auto_resume", "limit", "vote", mode="before", check_fields=False)
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """1.0 is an integer to JSON Schema, and to callers whose language has one kind of number."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


class LaunchIn(_In):
    """What to run: a preset, and what to change of it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"preset": "reasoning", "config": {"training": {"batch_size": 4, "max_steps": 60}}}]}
    )

    preset: str = Field(description="One of GET /v1/presets.", max_length=40)
    config: dict[str, Any] = Field({}, description="Overrides by section; see GET /v1/config/schema.")
    name: Name | None = None
    tags: list[Tag] = Field([], max_length=20)
    seed: int | None = Field(None, ge=0, lt=2**31)
    external_id: Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[\w.:/\-]+$")] | None = Field(
        None, description="A name of the caller's; a second run cannot have it."
    )

    priority: int = Field(0, ge=-1000, le=1000, description="Among queued runs the highest goes first.")
    auto_resume: int | None = Field(None, ge=0, le=1000, description="How often a lost worker is replaced without new progress.")
    notes: str | None = Field(None, max_length=10_000)


class PauseIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint": "save", "deadline_s": 30.0, "on_timeout": "stop"}]})

    checkpoint: Literal["save", "latest"] = Field(
        "save", description="Save before leaving, or leave at once and do the steps after the latest checkpoint again."
    )
    deadline_s: float | None = Field(None, gt=0, le=86_400, description="Seconds within which the run must be paused.")
    on_timeout: Literal["keep_running", "stop"] = Field(
        "keep_running", description="After the deadline: forget the pause, or end the run's processes and stop it."
    )


class StopIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint": "save", "grace_s": 30.0}]})

    checkpoint: Literal["save", "latest"] = Field("save", description="Save before leaving, or keep the latest checkpoint as it is.")
    grace_s: float = Field(60.0, ge=0, le=3600, description="Seconds to save and leave before the worker is killed.")


class EditIn(_In):
    """What is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "night 7", "notes": "the larger batch", "tags": ["night"], "priority": 5}]}
    )

    name: Name | SkipJsonSchema[None] = _Unset
    notes: Annotated[str, Field(max_length=10_000)] | None = _Unset
    tags: Annotated[list[Tag], Field(max_length=20)] | SkipJsonSchema[None] = _Unset
    priority: Annotated[int, Field(ge=-1000, le=1000)] | SkipJsonSchema[None] = _Unset


class ForkIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"config": {"optimizer": {"muon_lr": 0.01}}, "name": "slower"}]})

    checkpoint_id: CheckpointId | None = Field(None, description="Where to go on from; empty takes the newest.")
    config: dict[str, Any] = Field({}, description="Overrides by section; not of model, data, batch or seed.")
    name: Name | None = None
    tags: list[Tag] = Field([], max_length=20)
    notes: str | None = Field(None, max_length=10_000)
    priority: int = Field(0, ge=-1000, le=1000)
    auto_resume: int | None = Field(None, ge=0, le=1000)


class GroupIn(_In):
    """Several runs as one: by default the three specialists, each on its own configuration."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "night", "presets": ["reasoning", "speed"], "config": {"training": {"max_steps": 60}}}]}
    )

    name: Name | None = None
    presets: list[Annotated[str, Field(max_length=40)]] = Field(list(SPECIALISTS), min_length=1, max_length=20)
    config: dict[str, Any] = Field({}, description="Overrides for every run.")
    overrides: dict[str, dict[str, Any]] = Field({}, description="Further overrides by preset.")
    tags: list[Tag] = Field([], max_length=20)
    priority: int = Field(0, ge=-1000, le=1000)
    auto_resume: int | None = Field(None, ge=0, le=1000)


class EvaluateIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"datasets": ["gsm8k", "arc_easy"], "limit": 100}]})

    checkpoint_id: CheckpointId | None = Field(None, description="Which one; empty takes the newest.")
    datasets: Annotated[list[DatasetName], Field(min_length=1, max_length=14)] | None = Field(None, description="Empty takes all.")
    limit: int | None = Field(None, ge=1, description="A fixed sample of so many items of each; empty takes every item.")
    overlap: bool = Field(True, description="Count the items that share 13 words in a row with the training text.")
    calculator: bool = Field(False, description="Also measure answers that are numbers with a calculator behind `<<expression=`.")
    vote: int | None = Field(None, ge=2, le=100, description="Also measure the majority of so many drawn answers that are numbers.")


class HandoffIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"allow_any_size": False}]})

    allow_any_size: bool = Field(
        False, description="Take other sizes and presets too; the archive then says that it is not fit for Phase 2."
    )


class QueueIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"held": True}]})

    held: bool = Field(description="Hold back queued runs; what is at work goes on.")


class PinIn(_In):
    model_config = ConfigDict(json_schema_extra={"examples": [{"pinned": True}]})

    pinned: bool = Field(description="A pinned checkpoint is never deleted.")


class Progress(BaseModel):
    step: int
    total_steps: int | None
    epoch: float | None = None
    percent: float | None = None
    eta_s: float | None = None
    tokens_per_s: float | None = None
    step_time_s: float | None = None
    skipped_steps: int | None = None


_COUNTS = ("step", "total_steps", "skipped_steps")


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


class Page(BaseModel, Generic[Item]):
    data: list[Item]
    has_more: bool
    next_cursor: str | None


class EventOut(BaseModel):
    seq: int
    attempt: int
    kind: str
    at: datetime
    step: int | None
    data: dict[str, Any]


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


class GroupOut(BaseModel):
    id: str
    name: str
    created_at: datetime
    states: dict[str, int] = Field(description="How many runs are in each state.")
    runs: list[RunOut]


class QueueOut(BaseModel):
    held: bool
    data: list[RunOut]


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


class DeviceOut(BaseModel):
    slot: str
    run_id: str | None = Field(description="The run that holds it.")
    name: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilisation_percent: float | None = None


class LogOut(BaseModel):
    attempt: int
    text: str
    next_offset: int
    size: int


class MetricsOut(BaseModel):
    """Metric rows by column: `columns["loss"][i]` belongs to step `columns["step"][i]`; null was not measured."""

    run_id: str
    attempts: Literal["effective", "all"]
    columns: dict[str, list[Value | int | None]]


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
    state = State(run.state)
    return {
        **{name: getattr(run, name) for name in ("id", "name", "preset", "tags", "external_id", "state", "state_reason", "state_detail")},
        "phase": run.phase,
        "allowed_commands": allowed_commands(state),
        **{name: getattr(run, name) for name in ("version", "attempt")},
        "queue_position": position,
        **{name: getattr(run, name) for name in ("priority", "notes", "group_id", "forked_from", "auto_resume", "auto_resumes")},
        **{name: instant(getattr(run, name)) for name in ("created_at", "updated_at", "started_at", "ended_at")},
        "progress": _progress(run),
        "metrics": {key: value if isinstance(value, str) else float(value) for key, value in (run.latest or {}).items()},
        "alert_count": len(run.alerts),
    }


def _progress(run: Run | Row[Any] | SimpleNamespace) -> dict[str, Any] | None:
    if run.progress is None:
        return _progress_of({"step": 0, "total_steps": run.plan["total_steps"]}, None) if run.plan else None
    return _progress_of(run.progress, 100 * run.progress["step"] / run.progress["total_steps"])


def _progress_of(told: dict[str, Any], percent: float | None) -> dict[str, Any]:
    fields = {name: told.get(name) for name in Progress.model_fields}
    numbers = {name: float(value) for name, value in fields.items() if isinstance(value, int) and name not in _COUNTS}
    return {**fields, **numbers, "percent": percent}


def event_out(event: Event) -> EventOut:
    return EventOut(**_fields(event, EventOut))


def attempt_out(attempt: Attempt) -> AttemptOut:
    return AttemptOut(**_fields(attempt, AttemptOut))


def checkpoint_out(checkpoint: Checkpoint) -> CheckpointOut:
    return CheckpointOut(**_fields(checkpoint, CheckpointOut))


def job_out(job: Job) -> JobOut:
    return JobOut(**_fields(job, JobOut))


def diversity_out(group_id: str, found: Measured) -> DiversityOut:
    measured_at = None if found.measured_at is None else instant(found.measured_at)
    job = None if found.job is None else job_out(found.job)
    return DiversityOut(group_id=group_id, state=found.state, result=found.result, measured_at=measured_at, job=job)


def datasets_out(counted: Counted) -> DatasetsOut:
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


def group_out(group: RunGroup, members: Sequence[Run], queue: Sequence[str]) -> GroupOut:
    states = dict(Counter(run.state for run in members))
    shown = [run_out(run, queue) for run in members]
    return GroupOut(id=group.id, name=group.name, created_at=instant(group.created_at), states=states, runs=shown)


def instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _fields(row: object, shape: type[BaseModel]) -> dict[str, Any]:
    """The attributes of `row` that `shape` has, with seconds turned into instants."""
    values = {name: getattr(row, name) for name in shape.model_fields}
    return {name: instant(value) if name == "at" or name.endswith("_at") else value for name, value in values.items()}
