"""Metric rows: insert, read back by column, thin to buckets.

A number that is not finite is stored as NULL and named in the row's `nonfinite`; it is read back as "NaN",
"Infinity" or "-Infinity". A metric that was not measured is None. In plain SQL: through SQLAlchemy's expressions
20,000 rows took four times as long to read, and twenty times to insert.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from operator import itemgetter
from typing import Any

from sqlmodel import Session

from app.store.engine import Message, Write
from cognate.events import spell
from cognate.metrics import KEYS

AXES = ("seq", "attempt", "step", "epoch", "at")
LAST_STEP = 2**63 - 1  # the largest that SQLite holds
ALL_STEPS = (0, LAST_STEP)

_KEYS = frozenset(KEYS)
_COLUMNS = ("series", *AXES, *KEYS, "nonfinite")
_INSERT = f"INSERT INTO metric_row ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' for _ in _COLUMNS)})"  # noqa: S608 - our own names
_SERIES = "(SELECT number FROM series WHERE run_id = :run_id)"
# Nothing supersedes the newest attempt; only rows of those before it are looked up.
_EFFECTIVE = """
    AND (attempt = (SELECT max(number) FROM attempt WHERE run_id = :run_id) OR NOT EXISTS (
        SELECT 1 FROM metric_row AS later
        WHERE later.series = metric_row.series AND later.step = metric_row.step AND later.attempt > metric_row.attempt))"""


@dataclass(frozen=True)
class Row:
    """`values` by metric key, only what was measured; epoch counts passes, at is seconds since the epoch, UTC."""

    step: int
    epoch: float
    at: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Buckets:
    """One metric, by bucket; None where it has no such number.

    min and max are of the finite values; last is the newest measurement, by its name if it is not finite, and last_step
    its step; nonfinite counts the values that were not finite.
    """

    min: list[float | None] = field(default_factory=list)
    max: list[float | None] = field(default_factory=list)
    last: list[float | str | None] = field(default_factory=list)
    last_step: list[int | None] = field(default_factory=list)
    nonfinite: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Thinned:
    """Rows in buckets `bucket_steps` wide: bucket i begins at step[i], a multiple of that, and holds rows[i] of them."""

    bucket_steps: int
    step: list[int]
    rows: list[int]
    metrics: dict[str, Buckets]


def add(write: Write, run_id: str, attempt: int, rows: Iterable[Row]) -> None:
    """Insert rows in their order and tell them; raises LookupError for a metric there is not."""
    inserts, told = [], []
    for row in rows:
        if unknown := row.values.keys() - _KEYS:
            raise LookupError(f"no metric {', '.join(sorted(unknown))}")
        seq = write.next_seq()
        axes = {"seq": seq, "attempt": attempt, "step": row.step, "epoch": row.epoch, "at": row.at}
        finite, nonfinite = row.values, {}
        if not all(map(isfinite, finite.values())):
            nonfinite = {key: spell(value) for key, value in finite.items() if not isfinite(value)}
            finite = {key: value for key, value in finite.items() if key not in nonfinite}
        inserts.append((*axes.values(), *map(finite.get, KEYS), json.dumps(nonfinite) if nonfinite else None))
        told.append(Message(seq, run_id, "metrics", {**axes, "values": {**finite, **nonfinite}}))
    if inserts:
        series = _series(write.session, run_id)
        write.session.connection().exec_driver_sql(_INSERT, [(series, *row) for row in inserts])
        write.messages += told


def amend(write: Write, run_id: str, values: Mapping[str, float]) -> None:
    """Add finite values to a run's last row, if it has one. It is told anew, whole, under a new seq: whoever followed takes it in
    as a row that came again, whoever comes back with an older cursor is sent it."""
    find = {"run_id": run_id}
    newest = _fetch(write.session, f"SELECT seq FROM metric_row WHERE series = {_SERIES} ORDER BY step DESC, attempt DESC LIMIT 1", find)  # noqa: S608
    if not newest or not values:
        return
    seq = write.next_seq()
    changes = ", ".join(f"{key} = :{key}" for key in _known(tuple(values)))
    update = f"UPDATE metric_row SET seq = :seq, {changes} WHERE seq = :before"  # noqa: S608 - our own names
    write.session.connection().exec_driver_sql(update, {**values, "seq": seq, "before": newest[0][0]})
    write.messages += after(write.session, run_id, seq - 1, 1, seq)


def _series(session: Session, run_id: str) -> int:
    session.flush()  # the run may be new as well
    connection = session.connection()
    connection.exec_driver_sql("INSERT OR IGNORE INTO series (run_id) VALUES (?)", (run_id,))
    return int(connection.exec_driver_sql("SELECT number FROM series WHERE run_id = ?", (run_id,)).scalar_one())


def columns(
    session: Session, run_id: str, keys: Sequence[str], *, steps: tuple[int, int] = ALL_STEPS, effective: bool = True
) -> dict[str, list[Any]]:
    """The rows of a run by column, in the order of their steps.

    steps: the first and the last, both included
    effective: of a step trained more than once, after a resume from before it, only the latest attempt
    """
    names = (*AXES, *keys)
    rows = _read(session, names, f"{_rows(effective)} ORDER BY step, attempt", _parameters(run_id, steps))
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)) if rows else {name: [] for name in names}


def page(
    session: Session,
    run_id: str,
    keys: Sequence[str],
    limit: int,
    behind: Sequence[Any] | None = None,
    *,
    steps: tuple[int, int] = ALL_STEPS,
    effective: bool = True,
) -> list[Sequence[Any]]:
    """Up to `limit` rows, those that come after row `behind`: each AXES, then `keys`; else as columns()."""
    step, attempt = (behind[AXES.index("step")], behind[AXES.index("attempt")]) if behind else (steps[0], -1)
    parameters = {**_parameters(run_id, (step, steps[1])), "attempt": attempt, "limit": limit}
    rows = f"{_rows(effective)} AND (step > :first OR attempt > :attempt) ORDER BY step, attempt LIMIT :limit"
    return _read(session, (*AXES, *keys), rows, parameters)


def thinned(
    session: Session, run_id: str, keys: Sequence[str], max_points: int, *, steps: tuple[int, int] = ALL_STEPS, effective: bool = True
) -> Thinned:
    """The rows of a run in at most `max_points` buckets; `steps` and `effective` as for columns().

    A bucket is as many steps wide as the smallest power of two that suffices, and begins at a multiple of it: rows to come
    change no bucket but the last, until the width doubles.
    """
    parameters = _parameters(run_id, steps)
    parameters["shift"] = shift = _shift(session, parameters, max_points)
    each = [f"min({key}), max({key}), max(step) FILTER (WHERE {key} IS NOT NULL)" for key in _known(keys)]
    odd_rows = "json_group_array(json_array(step, json(nonfinite))) FILTER (WHERE nonfinite IS NOT NULL)"
    query = f"SELECT step >> :shift, count(*), {odd_rows}, {', '.join(each)} {_rows(effective)} GROUP BY 1 ORDER BY 1"
    table = Thinned(1 << shift, [], [], {key: Buckets() for key in keys})
    ends: set[int] = set()  # the steps at which some key was measured last, by bucket
    for bucket, count, named, *found in _fetch(session, query, parameters):
        odd = sorted(json.loads(named), key=itemgetter(0))  # [step, {key: name}]
        ends.update(step for step in found[2::3] if step is not None)
        ends.update({key: step for step, names in odd for key in names}.values())
        table.step.append(bucket << shift)
        table.rows.append(count)
        for place, (key, buckets) in enumerate(table.metrics.items()):
            buckets.min.append(found[3 * place])
            buckets.max.append(found[3 * place + 1])
            buckets.nonfinite.append(sum(key in names for _, names in odd))
    parameters["ends"] = json.dumps(sorted(ends))
    rows = _rows(effective, "step IN (SELECT value FROM json_each(:ends))")
    _add_last(table, _read(session, (*AXES, *keys), f"{rows} ORDER BY step, attempt", parameters))
    return table


def after(session: Session, run_id: str | None, seq: int, limit: int, upto: int) -> list[Message]:
    """Rows with seq in (seq, upto], oldest first, as they were told when they were new."""
    only = "" if run_id is None else f"AND +series = {_SERIES}"  # by seq: with the other index every page would read and sort the whole run
    rows = f"FROM metric_row JOIN series ON number = series WHERE seq > :seq AND seq <= :upto {only} ORDER BY seq LIMIT :limit"
    messages = []
    for of, *row in _read(session, ("run_id", *AXES, *KEYS), rows, {"run_id": run_id, "seq": seq, "upto": upto, "limit": limit}):
        values = {key: value for key, value in zip(KEYS, row[len(AXES) :], strict=True) if value is not None}
        messages.append(Message(row[0], of, "metrics", {**dict(zip(AXES, row, strict=False)), "values": values}))
    return messages


def _rows(effective: bool, steps: str = "step BETWEEN :first AND :last") -> str:
    return f"FROM metric_row WHERE series = {_SERIES} AND {steps} {_EFFECTIVE if effective else ''}"


def _parameters(run_id: str, steps: tuple[int, int]) -> dict[str, Any]:
    return {"run_id": run_id, "first": steps[0], "last": steps[1]}


def _known(names: Sequence[str]) -> Sequence[str]:
    assert set(names) <= {"run_id", *_COLUMNS}, "names become SQL: the caller has checked them"
    return names


def _shift(session: Session, parameters: dict[str, Any], max_points: int) -> int:
    """The least power of two, as its exponent, for which the steps there are fill at most `max_points` buckets."""
    rows = _rows(effective=False)  # superseded rows have steps that other rows have
    [(first, last)] = _fetch(session, f"SELECT (SELECT min(step) {rows}), (SELECT max(step) {rows})", parameters)
    if first is None:
        return 0
    shift = 0
    while (last >> shift) - (first >> shift) >= max_points:
        shift += 1
    # Steps with gaps between them fill fewer buckets than they span.
    filled = f"SELECT count(DISTINCT step >> :shift) {rows}"
    while shift and _fetch(session, filled, {**parameters, "shift": shift - 1})[0][0] <= max_points:
        shift -= 1
    return shift


def _add_last(table: Thinned, rows: Iterable[Sequence[Any]]) -> None:
    """Fill in each bucket's last values from `rows`, in their order: AXES, then the table's keys."""
    newest: dict[tuple[int, str], tuple[int, float | str]] = {}
    for row in rows:
        step = row[AXES.index("step")]
        for key, value in zip(table.metrics, row[len(AXES) :], strict=True):
            if value is not None:
                newest[step - step % table.bucket_steps, key] = (step, value)
    for key, buckets in table.metrics.items():
        for begin in table.step:
            step, value = newest.get((begin, key), (None, None))
            buckets.last.append(value)
            buckets.last_step.append(step)


def _read(session: Session, names: Sequence[str], rows: str, parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
    """Those columns of `rows`, names in place of what was not finite."""
    found = _fetch(session, f"SELECT {', '.join(_known(names))}, nonfinite {rows}", parameters)
    return [_spelled(names, row) if row[-1] else row[:-1] for row in found]


def _spelled(names: Sequence[str], row: Sequence[Any]) -> Sequence[Any]:
    nonfinite = json.loads(row[-1])
    return [nonfinite.get(name, value) for name, value in zip(names, row[:-1], strict=True)]


def _fetch(session: Session, query: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    return session.connection().exec_driver_sql(query, dict(parameters)).fetchall()
