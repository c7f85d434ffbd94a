"""The worker's voice: every fact goes to the journal, and to whoever listens in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cognate.events import Event, Kind
from cognate.rundir import Journal

Listener = Callable[[Event], None]
PROGRESS_EVERY_S = 1.0


class Reporter:
    def __init__(self, journal: Journal, *listeners: Listener) -> None:
        self._journal = journal
        self._listeners = listeners
        self._progress_at = -PROGRESS_EVERY_S

    def say(self, kind: Kind, **data: Any) -> None:
        event = self._journal.append(kind, **data)
        for listener in self._listeners:
            listener(event)

    def phase(self, name: str) -> None:
        self.say(Kind.PHASE, phase=name)

    def warning(self, message: str, **data: Any) -> None:
        self.say(Kind.WARNING, message=message, **data)

    def metrics(self, step: int, epoch: float, values: Mapping[str, float], progress: Mapping[str, float]) -> None:
        """One row. `epoch` counts passes with their fraction; `values` by metric key, only what was measured."""
        self.say(Kind.METRICS, step=step, epoch=epoch, values=dict(values), progress=dict(progress))
        self._progress_at = time.monotonic()

    def progress(self, progress: Mapping[str, float]) -> None:
        """Where training is, between two rows; dropped when the last word is less than a second old."""
        if time.monotonic() - self._progress_at >= PROGRESS_EVERY_S:
            self.say(Kind.PROGRESS, progress=dict(progress))
            self._progress_at = time.monotonic()

    def sync(self) -> None:
        self._journal.sync()
