"""A run as its journals tell it: the rows that count, by rising step, and what stands beside them; read on as they grow.

Of a step that several attempts told, the newest telling counts, as in the service. What was measured once all was over comes last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from cognate.events import ENDINGS, Event, Kind, MalformedLine
from cognate.metrics import KEYS
from cognate.rundir import RunDir, read_to_end

_KEYS = frozenset(KEYS)


@dataclass(frozen=True)
class Row:
    """What was measured at one step; `values` by metric key, only what was. at: seconds since the epoch; tokens: read so far.

    number: its place in a history of strictly rising numbers: the step; what was measured when all was over has the next ones, one
            for each time it was measured
    """

    number: int
    step: int
    at: float
    epoch: float
    tokens: int | None
    values: Mapping[str, float]


class Story:
    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._chapters: dict[Path, Chapter] = {}
        self._best: tuple[float, int] | None = None  # held-out loss, step
        self.journal_sizes: list[int] = []
        self.began = math.nan  # when the first row was told, seconds since the epoch

    def rows(self) -> Iterator[Row]:
        """What is new, by rising number."""
        self.journal_sizes = self._run.journal_sizes()  # before reading: a torn last line is not waited for for ever
        for chapter in chapters(self._run):
            self._chapters.setdefault(chapter.journal, chapter)
        told = merge(*(chapter.rows() for chapter in self._chapters.values()), key=attrgetter("number"))
        for _, same in groupby(told, key=attrgetter("number")):
            *_, row = same
            self._take(row)
            yield row

    def _take(self, row: Row) -> None:
        if math.isnan(self.began):
            self.began = row.at
        loss = row.values.get("val_loss", math.nan)
        if math.isfinite(loss) and (self._best is None or loss < self._best[0]):
            self._best = loss, row.step

    @property
    def ending(self) -> Kind | None:
        """How the newest attempt said it ended; None: it did not."""
        last = self._last_word
        return last.kind if last else None

    @property
    def _last_word(self) -> Event | None:
        endings = [chapter.ending for chapter in self._chapters.values() if not chapter.is_afterwards]
        return endings[-1] if endings else None

    def summary(self) -> dict[str, Any]:
        """What stands beside the curves."""
        warnings = [sentence for chapter in self._chapters.values() for sentence in chapter.warnings]
        plans = [chapter.plan for chapter in self._chapters.values() if chapter.plan]
        found: dict[str, Any] = {"ending": self.ending.value if self.ending else "no last word", "warnings": len(warnings)}
        if plans:
            found["total_params"] = plans[-1].get("total_params")
        if self._best:
            found["best_val_loss"], found["best_val_step"] = self._best
        if warnings:
            found["last_warning"] = warnings[-1]
        if self._last_word and self._last_word.kind is Kind.FAILED:
            found["failure"] = f"{self._last_word.data.get('reason')}: {self._last_word.data.get('detail')}"
        return found


def chapters(run: RunDir) -> Iterator[Chapter]:
    """The journals there are, in the order in which they count."""
    for attempt in run.attempts():
        yield Chapter(attempt.journal)
    yield Chapter(run.afterwards, is_afterwards=True)


class Chapter:
    """The journal of one attempt, or what was measured afterwards."""

    def __init__(self, journal: Path, *, is_afterwards: bool = False) -> None:
        self.journal = journal
        self.is_afterwards = is_afterwards
        self._offset = 0
        self._afterwards = 0  # rows told so far, where it is what was measured afterwards
        self.plan: dict[str, Any] | None = None
        self.warnings: list[str] = []
        self.ending: Event | None = None

    def rows(self) -> Iterator[Row]:
        """What is new."""
        for entry, offset in read_to_end(self.journal, self._offset):
            self._offset = offset
            if (row := self._take(entry)) is not None:
                yield row

    def _take(self, entry: Event | MalformedLine) -> Row | None:
        if isinstance(entry, MalformedLine):
            self.warnings.append(f"a line of the journal was passed over: {entry}")
            return None
        match entry.kind:
            case Kind.METRICS:
                return self._row(entry)
            case Kind.PLAN:
                self.plan = entry.data
            case Kind.WARNING:
                self.warnings.append(str(entry.data.get("message")))
            case kind if kind in ENDINGS:
                self.ending = entry
        return None

    def _row(self, event: Event) -> Row:
        data = event.data
        self._afterwards += self.is_afterwards
        values = {key: value for key, value in data["values"].items() if key in _KEYS}
        return Row(data["step"] + self._afterwards, data["step"], event.at, data["epoch"], data["progress"].get("tokens"), values)
