"""Queries on jobs. Which is newer is told by the order in which they came, not by the clock, which may be set back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, literal_column, select
from sqlmodel import Session, col

from app.store.tables import Job

UNFINISHED = ("queued", "running")
_ORDER: ColumnElement[int] = literal_column("job.rowid")


class NoSuchJob(LookupError):
    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")


def get(session: Session, job_id: str) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NoSuchJob(job_id)
    return job


def in_states(session: Session, states: Collection[str]) -> Sequence[Job]:
    """Jobs in any of `states`, oldest first."""
    return session.execute(select(Job).where(col(Job.state).in_(states)).order_by(_ORDER)).scalars().all()


def unfinished(session: Session, kind: str, subject: str, spec: dict[str, Any]) -> Job | None:
    """A job that is queued or running and will do exactly this."""
    return next((job for job in in_states(session, UNFINISHED) if (job.kind, job.subject, job.spec) == (kind, subject, spec)), None)


def newest_by_subject(session: Session, kind: str) -> Sequence[str]:
    """The newest completed job of this kind about each subject."""
    alike = (col(Job.kind) == kind) & (col(Job.state) == "completed")
    newest = select(func.max(_ORDER)).select_from(Job).where(alike).group_by(col(Job.subject))
    return session.execute(select(col(Job.id)).where(_ORDER.in_(newest))).scalars().all()


def page(session: Session, limit: int, after: str | None = None, **equal: str | None) -> Sequence[Job]:
    """Up to `limit` jobs older than job `after`, newest first. equal: values of columns"""
    query = select(Job).order_by(_ORDER.desc()).limit(limit)
    if after is not None:
        place = session.execute(select(_ORDER).select_from(Job).where(col(Job.id) == after)).scalar()
        if place is None:
            return []
        query = query.where(place > _ORDER)
    for column, value in equal.items():
        if value is not None:
            query = query.where(getattr(Job, column) == value)
    return session.execute(query).scalars().all()


def latest(session: Session, kind: str, subject: str, state: str | None = None) -> Job | None:
    """The newest job of this kind about `subject`; in `state`, if one is given."""
    return next(iter(page(session, 1, kind=kind, subject=subject, state=state)), None)
