"""Queries on runs, groups, attempts and checkpoints. Changes of state go through set_state() only."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from sqlalchemy import ColumnElement, Row, case, func, literal_column, select, update
from sqlalchemy import delete as delete_rows
from sqlmodel import Session, col

from app.store.engine import Message, Write
from app.store.tables import Attempt, Checkpoint, Event, IdempotencyKey, Meta, Run, RunGroup, Series, metric_row
from cognate.events import Kind

# A list shows no configuration, and of a plan only what stands in for progress. Columns, not objects: a tenth of the time.
_LISTED = (
    *(column for name, column in Run.__table__.columns.items() if name not in ("config", "plan")),  # type: ignore[attr-defined]
    case((col(Run.progress).is_(None), col(Run.plan))).label("plan"),
)
# A key is forgotten when both say so: by the clock alone, a jump would forget those of a minute ago.
KEYS_KEPT_S, KEYS_KEPT = 24 * 3600, 10_000
IN_TURN = (col(Run.priority).desc(), col(Run.queued_seq), col(Run.id))


class NoSuchRun(LookupError):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"no run {run_id!r}")


class NoSuchGroup(LookupError):
    def __init__(self, group_id: str) -> None:
        super().__init__(f"no group {group_id!r}")


class NoCheckpoint(LookupError):
    """There is none, or it is not there any more."""


class KeyReused(ValueError):
    """An idempotency key that belongs to another request."""


class Once(Protocol):
    """What idempotency needs of a request (services/runs.py)."""

    @property
    def key(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


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
    """Runs in any of `states`, in the order in which they are launched."""
    query = select(Run).where(col(Run.state).in_(states)).order_by(*IN_TURN)
    return session.execute(query).scalars().all()


def changes_at_rest(session: Session, after: int) -> Sequence[tuple[int, str]]:
    """(seq, run) of what may leave a run at rest with more to tell, above `after`, oldest first: its states, and what was measured then."""
    matters = (col(Event.seq) > after) & col(Event.kind).in_(("state", "diversity"))
    query = select(col(Event.seq), col(Event.run_id)).where(matters).order_by(col(Event.seq))
    return [(seq, run_id) for seq, run_id in session.execute(query)]


def page(session: Session, limit: int, *, after: str | None = None, tag: str | None = None, **equal: str | None) -> Sequence[Row[Any]]:
    """Up to `limit` runs older than run `after`, newest first: ids are time-sortable.

    tag: one that they have; equal: values of columns
    """
    query = select(*_LISTED).order_by(col(Run.id).desc()).limit(limit)
    if after is not None:
        query = query.where(col(Run.id) < after)
    if tag is not None:
        each = func.json_each(col(Run.tags)).table_valued("value")
        query = query.where(select(each.c.value).where(each.c.value == tag).exists())
    for column, value in equal.items():
        if value is not None:
            query = query.where(getattr(Run, column) == value)
    return session.execute(query).all()


def count(session: Session) -> int:
    return int(session.execute(select(func.count()).select_from(Run)).scalar_one())


def by_external_id(session: Session, external_id: str) -> Run | None:
    return session.execute(select(Run).where(col(Run.external_id) == external_id)).scalar_one_or_none()


def states(session: Session) -> Sequence[str]:
    """The state of every run."""
    return session.execute(select(col(Run.state))).scalars().all()


def queue(session: Session) -> Sequence[str]:
    """Ids of the queued runs in the order they will be launched."""
    query = select(col(Run.id)).where(col(Run.state) == "queued").order_by(*IN_TURN)
    return session.execute(query).scalars().all()


def groups(session: Session, limit: int, after: str | None = None) -> Sequence[RunGroup]:
    """Up to `limit` groups older than group `after`, newest first."""
    query = select(RunGroup).order_by(col(RunGroup.id).desc()).limit(limit)
    if after is not None:
        query = query.where(col(RunGroup.id) < after)
    return session.execute(query).scalars().all()


def group(session: Session, group_id: str) -> RunGroup:
    found = session.get(RunGroup, group_id)
    if found is None:
        raise NoSuchGroup(group_id)
    return found


def of_group(session: Session, group_id: str) -> Sequence[Run]:
    """The runs of a group, in the order they were asked for; raises NoSuchGroup."""
    group(session, group_id)
    return session.execute(select(Run).where(col(Run.group_id) == group_id).order_by(col(Run.id))).scalars().all()


def is_held(session: Session) -> bool:
    """Whether queued runs are not to be launched for now."""
    row = session.get(Meta, "queue_held")
    return row is not None and row.value == "yes"


def hold(write: Write, held: bool) -> None:
    write.session.merge(Meta(key="queue_held", value="yes" if held else "no"))


def done_before(write: Write, once: Once | None) -> str | None:
    """What the same request made when it came first; raises KeyReused when the key came with another request."""
    if once is None or (row := write.session.get(IdempotencyKey, once.key)) is None:
        return None
    if row.fingerprint != once.fingerprint:
        raise KeyReused(f"the idempotency key {once.key!r} came before with another request")
    return row.subject


def note_done(write: Write, once: Once | None, subject: str) -> None:
    """Remember, in the transaction of its effect, that a request was carried out."""
    if once is not None:
        now = time.time()
        rowid: ColumnElement[int] = literal_column("idempotency_key.rowid")  # rises by one a key
        is_old = func.abs(col(IdempotencyKey.created_at) - now) > KEYS_KEPT_S
        newest = select(func.max(rowid)).select_from(IdempotencyKey).scalar_subquery()
        write.session.execute(delete_rows(IdempotencyKey).where(is_old, rowid <= newest - KEYS_KEPT))
        write.session.add(IdempotencyKey(key=once.key, fingerprint=once.fingerprint, subject=subject, created_at=now))


def change(write: Write, run: Run, **changes: Any) -> None:
    """Compare-and-set columns that are no state; raises StateChanged."""
    _compare_and_set(write, run, {**changes, "updated_at": time.time(), "version": run.version + 1})


def delete(write: Write, run_id: str) -> None:
    """All rows of a run."""
    write.note_head()
    of_run = select(col(Series.number)).where(col(Series.run_id) == run_id).scalar_subquery()
    write.session.execute(delete_rows(metric_row).where(metric_row.c.series == of_run))
    write.session.execute(delete_rows(Run).where(col(Run.id) == run_id))  # the rest goes with it


def set_state(write: Write, run: Run, state: str, *, reason: str | None = None, detail: str | None = None, **changes: Any) -> None:
    """Compare-and-set `run` to `state` and say so; raises StateChanged when `run` is no longer what the caller read."""
    now = time.time()
    changes |= {"state": state, "state_reason": reason, "state_detail": detail, "updated_at": now, "version": run.version + 1}
    _compare_and_set(write, run, changes)
    write.log_lines.append(f"{run.id} ({run.name}): {state}{f', {reason}' if reason else ''}")
    add_event(write, run.id, run.attempt, "state", now, None, {"state": state, "reason": reason, "detail": detail})


def _compare_and_set(write: Write, run: Run, changes: dict[str, Any]) -> None:
    write.session.flush()
    same = (col(Run.id) == run.id) & (col(Run.version) == run.version) & (col(Run.state) == run.state)
    if write.session.connection().execute(update(Run).where(same).values(**changes)).rowcount != 1:
        raise StateChanged(f"run {run.id} changed meanwhile")
    write.session.refresh(run)


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


def samples(session: Session, run_id: str, after: int, limit: int) -> Sequence[Event]:
    """What the run's model wrote, with seq above `after`, oldest first: after a prompt at a step, what the latest attempt says it did."""
    written = (col(Event.run_id) == run_id) & (col(Event.kind) == Kind.SAMPLE)
    place = col(Event.data)["place"].as_integer()
    latest = select(func.max(col(Event.seq))).where(written).group_by(col(Event.step), place)
    query = select(Event).where(col(Event.seq).in_(latest), col(Event.seq) > after).order_by(col(Event.seq)).limit(limit)
    return session.execute(query).scalars().all()


def checkpoints(session: Session, run_id: str) -> Sequence[Checkpoint]:
    query = select(Checkpoint).where(col(Checkpoint.run_id) == run_id).order_by(col(Checkpoint.step), col(Checkpoint.created_at))
    return session.execute(query).scalars().all()


def checkpoint(session: Session, checkpoint_id: str) -> Checkpoint:
    """A checkpoint that is there; raises NoCheckpoint."""
    found = session.get(Checkpoint, checkpoint_id)
    if found is None or found.removed_at is not None:
        raise NoCheckpoint(f"no checkpoint {checkpoint_id!r}" if found is None else f"checkpoint {checkpoint_id!r} was removed")
    return found


def usable_checkpoint(session: Session, run_id: str, checkpoint_id: str | None) -> Checkpoint:
    """The named checkpoint of a run, or its newest; raises NoCheckpoint."""
    if checkpoint_id is not None:
        found = checkpoint(session, checkpoint_id)
        if found.run_id != run_id:
            raise NoCheckpoint(f"checkpoint {checkpoint_id!r} is not of run {run_id!r}")
        return found
    left = [row for row in checkpoints(session, run_id) if row.removed_at is None]
    if not left:
        raise NoCheckpoint(f"run {run_id!r} has no checkpoint yet")
    return left[-1]
