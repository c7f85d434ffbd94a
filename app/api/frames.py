"""What goes over the wire: frames, and committed messages turned into them. Each text is made once for all clients.

    hello {version, cursor, heartbeat_s}      snapshot {runs}           heartbeat {cursor}
    event {cursor, seq, run_id, attempt, kind, at, step, data}          progress {run_id, progress}
    batch {cursor, run_id, columns}           gap {from, to, refetch}   error {problem, detail}     bye {reason}
    deleted {run_id}                          queue {held}

A cursor is "<epoch>.<seq>": epoch names the database, seq counts events and metric rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import orjson

from app.api.schemas.base import instant
from app.services.hub import Hub
from app.store.engine import Message
from app.store.metrics import AXES
from cognate.metrics import KEYS


@dataclass(frozen=True, slots=True)
class Frame:
    """One message to a client. `cursor`: where to come back to once it was received; None leaves that as it was."""

    text: str
    cursor: str | None = None


def frame(cursor: str | None = None, /, **body: Any) -> Frame:
    return Frame(orjson.dumps(body).decode(), cursor)


@dataclass(frozen=True)
class Framing:
    """How one client wants messages: cursors of `epoch`, of metrics only `keys`. Without a hub texts are shared with nobody."""

    hub: Hub | None
    epoch: str
    keys: frozenset[str] | None

    def of(self, messages: Iterable[Message]) -> Iterator[Frame]:
        """Messages in order; neighbouring rows of a run travel together as columns."""
        for (kind, run_id), group in groupby(messages, key=lambda message: (message.type, message.run_id)):
            together = list(group)
            if kind == "metrics":
                yield self._batch(run_id, together)
            elif kind == "progress":
                yield frame(type="progress", run_id=run_id, progress=together[-1].body)
            elif kind == "deleted":
                yield frame(type="deleted", run_id=run_id)
            elif kind == "queue":
                yield frame(type="queue", **together[-1].body)
            else:
                yield from map(self._event, together)

    def cursor(self, seq: int) -> str:
        return f"{self.epoch}.{seq}"

    def _event(self, message: Message) -> Frame:
        cursor = self.cursor(message.seq)
        return Frame(self._text(cursor, partial(_event, cursor, message)), cursor)

    def _batch(self, run_id: str, rows: list[Message]) -> Frame:
        # Between two of its events a run's rows are told without exception, so the first and the last name all of them.
        cursor = self.cursor(rows[-1].seq)
        return Frame(self._text((cursor, rows[0].seq, self.keys), partial(_batch, cursor, run_id, rows, self.keys)), cursor)

    def _text(self, key: Hashable, make: Callable[[], str]) -> str:
        return make() if self.hub is None else self.hub.shared(key, make)


def _event(cursor: str, message: Message) -> str:
    return orjson.dumps({"type": "event", "cursor": cursor, **message.body, "at": instant(message.body["at"])}).decode()


def _batch(cursor: str, run_id: str, rows: list[Message], keys: frozenset[str] | None) -> str:
    columns: dict[str, list[Any]] = {axis: [row.body[axis] for row in rows] for axis in AXES}
    measured = {key for row in rows for key in row.body["values"]}
    for key in KEYS:
        if key in measured and (keys is None or key in keys):
            columns[key] = [row.body["values"].get(key) for row in rows]
    return orjson.dumps({"type": "batch", "cursor": cursor, "run_id": run_id, "columns": columns}).decode()
