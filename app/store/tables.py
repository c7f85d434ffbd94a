"""The tables. `metric_row` is drawn from METRICS: one column a metric, so a new metric is a migration and no code.

Instants are REAL seconds since the epoch, UTC. Structured values are JSON text.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Column, Float, Index, Integer, Table, UniqueConstraint
from sqlmodel import Field, SQLModel

from cognate.metrics import METRICS

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


def _json(nullable: bool = True) -> Any:
    return Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=nullable))


class Run(SQLModel, table=True):
    """One run: what was asked, where it is, and what is known of it now."""

    id: str = Field(primary_key=True)
    name: str
    preset: str
    config: dict[str, Any] = _json(nullable=False)
    tags: list[str] = _json(nullable=False)
    external_id: str | None = Field(default=None, unique=True)
    created_at: float
    updated_at: float
    queued_seq: int = 0  # the newest sequence number when it was queued: clocks jump, these do not
    started_at: float | None = None
    ended_at: float | None = None
    state: str = Field(index=True)
    state_reason: str | None = None
    state_detail: str | None = None
    version: int = 1
    phase: str | None = None
    attempt: int = 0
    # What the worker of the current attempt is to do, and how long it may take; kill means without asking it.
    control_serial: int = 0
    control_grace_s: float | None = None
    control_saves: bool = True
    checkpoint_serial: int = 0
    on_timeout: str | None = None
    kill_requested: bool = False
    # Who waits first, and how often a run that is lost is launched again by itself.
    priority: int = 0
    auto_resume: int = 0
    auto_resumes: int = 0
    notes: str | None = None
    group_id: str | None = Field(default=None, foreign_key="run_group.id", index=True)
    forked_from: dict[str, Any] | None = _json()
    # The latest of what the journal says: a plan, where it is, and the newest value of each metric.
    plan: dict[str, Any] | None = _json()
    progress: dict[str, Any] | None = _json()
    latest: dict[str, Any] | None = _json()
    # What ails it now (services/alerts.py), and how many rows of a batch may go at once since memory did not suffice.
    alerts: list[dict[str, Any]] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    rows_at_most: int | None = None


class RunGroup(SQLModel, table=True):
    """Runs that belong together: the three specialists."""

    __tablename__ = "run_group"

    id: str = Field(primary_key=True)
    name: str
    created_at: float


class Attempt(SQLModel, table=True):
    """One life of a worker process."""

    run_id: str = Field(primary_key=True, foreign_key="run.id", ondelete="CASCADE")
    number: int = Field(primary_key=True)
    device: str
    launched_at: float
    ended_at: float | None = None
    journal_offset: int = 0
    resumed_from_step: int | None = None
    ending: str | None = None
    ending_data: dict[str, Any] | None = _json()
    exit_code: int | None = None
    exit_signal: int | None = None


class Event(SQLModel, table=True):
    """A fact of a journal or a change of state, in the order the server learned of it."""

    seq: int = Field(primary_key=True)
    run_id: str = Field(foreign_key="run.id", ondelete="CASCADE")
    attempt: int
    kind: str
    at: float
    step: int | None = None
    data: dict[str, Any] = _json(nullable=False)

    __table_args__ = (Index(None, "run_id", "seq"),)


class Checkpoint(SQLModel, table=True):
    id: str = Field(primary_key=True)
    run_id: str = Field(foreign_key="run.id", ondelete="CASCADE", index=True)
    attempt: int
    step: int
    name: str
    bytes: int
    files: dict[str, Any] = _json(nullable=False)
    created_at: float
    removed_at: float | None = None
    is_pinned: bool = False


class Job(SQLModel, table=True):
    """Work beside the training: an evaluation, a report. `subject` is what it is about: a run, a group, a dataset."""

    id: str = Field(primary_key=True)
    kind: str
    subject: str
    spec: dict[str, Any] = _json(nullable=False)
    state: str = Field(index=True)
    cancel_requested: bool = False
    device: str | None = None
    progress: dict[str, Any] | None = _json()
    result: dict[str, Any] | None = _json()
    reason: str | None = None
    detail: str | None = None
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None

    __table_args__ = (Index(None, "kind", "subject"),)


class IdempotencyKey(SQLModel, table=True):
    """A request that was carried out once; `fingerprint` is the SHA-256 of its method, path and body."""

    __tablename__ = "idempotency_key"

    key: str = Field(primary_key=True)
    fingerprint: str
    subject: str
    created_at: float = Field(index=True)


class Meta(SQLModel, table=True):
    """Facts about the database itself: `epoch`, drawn once, tells its cursors from another database's."""

    key: str = Field(primary_key=True)
    value: str


class Series(SQLModel, table=True):
    """The metric rows of one run: a number where its id would take 40 bytes, in every row and again in its index."""

    number: int | None = Field(default=None, primary_key=True)
    run_id: str = Field(foreign_key="run.id", ondelete="CASCADE", unique=True)


metric_row = Table(
    "metric_row",
    SQLModel.metadata,
    Column("seq", Integer, primary_key=True),
    Column("series", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("epoch", Float, nullable=False),
    Column("at", Float, nullable=False),
    *(Column(metric.key, Float) for metric in METRICS),
    # SQLite turns NaN into NULL; which of the NULLs were NaN or infinite stands here, as JSON.
    Column("nonfinite", JSON(none_as_null=True)),
    UniqueConstraint("series", "step", "attempt"),
)
