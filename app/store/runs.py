"""Queries on runs, attempts and checkpoints. Changes of state go through set_state() only."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlmodel import Session, col

from app.store.engine import Message, Write
from app.store.tables import Attempt, Checkpoint, Event, Run

log = logging.getLogger(__name__)


class NoSuchRun(LookupError):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"no run {run_id!r}")


class StateChanged(RuntimeError):
    """Somebody else changed the run first; look again and decide anew."""


def get(session: Session, run_id: str) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise NoSuchRun(run_id)
    return run


def some(session: Session, run_ids: Collection[str]) -> Sequence[Run]:
    """Those of the named runs that exist."""
    return session.execute(select(Run).where(col(Run.id).in_(run_ids))).scalars().all()


def in_states(session: Session, states: Collection[str]) -> Sequence[Run]:
    """Runs in any of `states`, in the order they were queued."""
    query = select(Run).where(col(Run.state).in_(states)).order_by(col(Run.queued_at), col(Run.id))
    return session.execute(query).scalars().all()


def page(session: Session, limit: int, *, after: str | None = None, state: str | None = None, preset: str | None = None) -> Sequence[Run]:
    """Up to `limit` runs older than run `after`, newest first: ids are time-sortable."""
    query = select(Run).order_by(col(Run.id).desc()).limit(limit)
    if after is not None:
        query = query.where(col(Run.id) < after)
    if state is not None:
        query = query.where(col(Run.state) == state)
    if preset is not None:
        query = query.where(col(Run.preset) == preset)
    return session.execute(query).scalars().all()


def count(session: Session) -> int:
    return int(session.execute(select(func.count()).select_from(Run)).scalar_one())


def by_external_id(session: Session, external_id: str) -> Run | None:
    return session.execute(select(Run).where(col(Run.external_id) == external_id)).scalar_one_or_none()


def queue(session: Session) -> Sequence[str]:
    """Ids of the queued runs in the order they will be launched."""
    query = select(col(Run.id)).where(col(Run.state) == "queued").order_by(col(Run.queued_at), col(Run.id))
    return session.execute(query).scalars().all()


def set_state(write: Write, run: Run, state: str, *, reason: str | None = None, detail: str | None = None, **changes: Any) -> None:
    """Compare-and-set `run` to `state` and say so; raises StateChanged when `run` is no longer what the caller read."""
    now = time.time()
    changes |= {"state": state, "state_reason": reason, "state_detail": detail, "updated_at": now, "version": run.version + 1}
    write.session.flush()
    same = (col(Run.id) == run.id) & (col(Run.version) == run.version) & (col(Run.state) == run.state)
    if write.session.connection().execute(update(Run).where(same).values(**changes)).rowcount != 1:
        raise StateChanged(f"run {run.id} changed meanwhile")
    write.session.refresh(run)
    log.info("%s (%s): %s%s", run.id, run.name, state, f", {reason}" if reason else "")
    add_event(write, run.id, run.attempt, "state", now, None, {"state": state, "reason": reason, "detail": detail})


def add_event(write: Write, run_id: str, attempt: int, kind: str, at: float, step: int | None, data: dict[str, Any]) -> None:
    seq = write.next_seq()
    write.session.add(Event(seq=seq, run_id=run_id, attempt=attempt, kind=kind, at=at, step=step, data=data))
    body = {"seq": seq, "run_id": run_id, "attempt": attempt, "kind": kind, "at": at, "step": step, "data": data}
    write.tell(Message(seq, run_id, "event", body))


def attempts(session: Session, run_id: str) -> Sequence[Attempt]:
    return session.execute(select(Attempt).where(col(Attempt.run_id) == run_id).order_by(col(Attempt.number))).scalars().all()


def attempt(session: Session, run_id: str, number: int) -> Attempt:
    found = session.get(Attempt, (run_id, number))
    assert found is not None, f"run {run_id} counts attempt {number} but has no row for it"
    return found


def events(
    session: Session, run_id: str | None, after: int, limit: int, kind: str | None = None, upto: int | None = None
) -> Sequence[Event]:
    """Events with seq above `after`, oldest first; of all runs when `run_id` is None."""
    query = select(Event).where(col(Event.seq) > after).order_by(col(Event.seq)).limit(limit)
    if run_id is not None:
        query = query.where(col(Event.run_id) == run_id)
    if kind is not None:
        query = query.where(col(Event.kind) == kind)
    if upto is not None:
        query = query.where(col(Event.seq) <= upto)
    return session.execute(query).scalars().all()


def checkpoints(session: Session, run_id: str) -> Sequence[Checkpoint]:
    query = select(Checkpoint).where(col(Checkpoint.run_id) == run_id).order_by(col(Checkpoint.step), col(Checkpoint.created_at))
    return session.execute(query).scalars().all()
