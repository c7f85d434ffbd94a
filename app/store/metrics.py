"""Metric rows: insert, and read back by column.

A number that is not finite is stored as NULL and named in the row's `nonfinite`; it is read back as "NaN",
"Infinity" or "-Infinity". A metric that was not measured is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Select, and_, exists, insert, select
from sqlmodel import Session

from app.store.engine import Message, Write
from app.store.tables import metric_row
from cognate.events import spell
from cognate.metrics import KEYS

AXES = ("seq", "attempt", "step", "epoch", "at")


def add(write: Write, run_id: str, attempt: int, step: int, epoch: float, at: float, values: Mapping[str, float]) -> None:
    """Insert a row and tell it; `values` by metric key, only what was measured."""
    seq = write.next_seq()
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    nonfinite = {key: spell(value) for key, value in values.items() if key not in finite}
    axes = {"seq": seq, "attempt": attempt, "step": step, "epoch": epoch, "at": at}
    write.session.execute(insert(metric_row).values(run_id=run_id, **axes, **finite, nonfinite=nonfinite or None))
    write.tell(Message(seq, run_id, "metrics", {**axes, "values": {**finite, **nonfinite}}))


def columns(
    session: Session,
    run_id: str,
    keys: Sequence[str],
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    effective: bool = True,
) -> dict[str, list[Any]]:
    """The rows of a run by column, in the order of their steps.

    effective: of a step trained more than once, after a resume from before it, only the latest attempt.
    """
    query = _select(keys).where(metric_row.c.run_id == run_id).order_by(metric_row.c.step, metric_row.c.attempt)
    if first_step is not None:
        query = query.where(metric_row.c.step >= first_step)
    if last_step is not None:
        query = query.where(metric_row.c.step <= last_step)
    if effective:
        later = metric_row.alias("later")
        again = and_(later.c.run_id == metric_row.c.run_id, later.c.step == metric_row.c.step, later.c.attempt > metric_row.c.attempt)
        query = query.where(~exists().where(again))
    return _columns(session, query, keys)


def after(session: Session, run_id: str | None, seq: int, limit: int, upto: int) -> list[Message]:
    """Rows with seq in (seq, upto], oldest first, as they were told when they were new."""
    query = _select(KEYS).add_columns(metric_row.c.run_id).where(metric_row.c.seq > seq, metric_row.c.seq <= upto)
    query = query.order_by(metric_row.c.seq).limit(limit)
    if run_id is not None:
        query = query.where(metric_row.c.run_id == run_id)
    messages = []
    for row in session.execute(query).mappings():
        values = {key: row[key] for key in KEYS if row[key] is not None} | (row["nonfinite"] or {})
        messages.append(Message(row["seq"], row["run_id"], "metrics", {**{axis: row[axis] for axis in AXES}, "values": values}))
    return messages


def _select(keys: Sequence[str]) -> Select[Any]:
    return select(*(metric_row.c[name] for name in (*AXES, *keys)), metric_row.c.nonfinite)


def _columns(session: Session, query: Select[Any], keys: Sequence[str]) -> dict[str, list[Any]]:
    names = (*AXES, *keys)
    rows = session.execute(query).all()
    if not rows:
        return {name: [] for name in names}
    *data, nonfinite = (list(column) for column in zip(*rows, strict=True))
    table = dict(zip(names, data, strict=True))
    for place, named in enumerate(nonfinite):
        for key, spelled in (named or {}).items():
            if key in table:
                table[key][place] = spelled
    return table
