"""One run as a plain row: it is the read asked for most, and by SQLModel it costs ten times as much.

The row's attributes are named as those of tables.Run; app/api/schemas/runs.py makes the same answer of either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace

import orjson

from app.store.engine import Store
from app.store.runs import NoSuchRun
from app.store.tables import Run
from cognate.config import SPECIALISTS

# As runs.IN_TURN orders them.
_POSITION = """CASE WHEN state = 'queued' THEN (
    SELECT count(*) FROM run AS other WHERE other.state = 'queued'
    AND (-other.priority, other.queued_seq, other.id) <= (-run.priority, run.queued_seq, run.id)) END"""
_NAMES = (*Run.model_fields, "queue_position")
_ONE = f"SELECT {', '.join(Run.model_fields)}, {_POSITION} FROM run WHERE id = ?"  # noqa: S608 - our own names


def run(store: Store, run_id: str) -> SimpleNamespace:
    """A run and its queue_position; config and plan are fragments of JSON, ready to be shown. Raises NoSuchRun."""
    found = store.glance(_ONE, (run_id,))
    if found is None:
        raise NoSuchRun(run_id)
    row = SimpleNamespace(**dict(zip(_NAMES, found, strict=True)))
    for name in ("tags", "forked_from", "progress", "latest", "alerts"):
        if (text := getattr(row, name)) is not None:
            setattr(row, name, orjson.loads(text))
    return _as_fragments(row)


def of(run: Run, queue: Sequence[str]) -> SimpleNamespace:
    """The same of a run that is at hand, as it was then: another read might show what others did to it since."""
    row = SimpleNamespace(**{name: getattr(run, name) for name in Run.model_fields})
    row.queue_position = queue.index(run.id) + 1 if run.id in queue else None
    row.config, row.plan = json.dumps(run.config), None if run.plan is None else json.dumps(run.plan)  # as the column has them
    return _as_fragments(row)


def _as_fragments(row: SimpleNamespace) -> SimpleNamespace:
    row.config = orjson.Fragment(row.config)
    if row.plan is not None:  # before there is progress, the plan says how far it will go; of a specialist, what is expected
        is_read = row.progress is None or row.preset in SPECIALISTS
        row.plan = orjson.loads(row.plan) if is_read else orjson.Fragment(row.plan)
    return row
