"""From a worker's journal to rows: each line once, whatever is killed when.

The rows of a stretch and the offset behind it are committed in one transaction; after any crash the next look
begins at the stored offset. What the lines say of the attempt's end is noted in its row; the supervisor acts on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

from sqlalchemy.exc import SQLAlchemyError
from uuid_utils import uuid7

from app.services.lifecycle import Fact, State, advance
from app.store import metrics, runs
from app.store.engine import Message, Write
from app.store.tables import Attempt, Checkpoint, Run
from cognate.events import ENDINGS, Event, Kind, MalformedLine, spell
from cognate.rundir import AttemptDir, read_journal

BLOCK_BYTES = 1 << 20
# Nearly all lines are of these kinds, and change nothing but rows and the newest values: neighbours are applied at once.
_NUMBERS = (Kind.METRICS, Kind.PROGRESS)
_Entry = Event | MalformedLine
Watch = Callable[[Sequence[Event]], None]


def ingest(write: Write, run: Run, attempt: Attempt, directory: AttemptDir, watch: Watch = lambda events: None) -> bool:
    """Take up to BLOCK_BYTES of new lines; whether there were any. `watch` is told what was applied, each event once."""
    before, progress = attempt.journal_offset, run.progress
    lines = read_journal(directory.journal, attempt.journal_offset, BLOCK_BYTES)
    for are_numbers, group in groupby(lines, key=lambda line: isinstance(line[0], Event) and line[0].kind in _NUMBERS):
        entries, offsets = zip(*group, strict=True)
        for together in [entries] if are_numbers else [[entry] for entry in entries]:
            _apply_or_warn(write, run, attempt, together, watch)
        attempt.journal_offset = offsets[-1]
    if run.progress is not progress:
        write.tell(Message(0, run.id, "progress", run.progress or {}))
    return attempt.journal_offset != before


def _apply_or_warn(write: Write, run: Run, attempt: Attempt, entries: Sequence[_Entry], watch: Watch) -> None:
    """A line that cannot be applied must not keep the rest of the journal waiting for ever: it is found by halves."""
    told, logged = len(write.messages), len(write.log_lines)
    try:
        with write.session.begin_nested():
            _apply(write, run, attempt, entries)
    except (LookupError, TypeError, ValueError, OverflowError, SQLAlchemyError) as error:
        del write.messages[told:], write.log_lines[logged:]
        half = len(entries) // 2
        if half:
            _apply_or_warn(write, run, attempt, entries[:half], watch)
            _apply_or_warn(write, run, attempt, entries[half:], watch)
        else:
            _warn(write, run, attempt, error)
    else:
        watch([entry for entry in entries if isinstance(entry, Event)])


def _warn(write: Write, run: Run, attempt: Attempt, error: Exception) -> None:
    message = f"a line of the journal was passed over: {type(error).__name__}: {error}"[:500]
    runs.add_event(write, run.id, attempt.number, "warning", time.time(), None, {"message": message})


def _apply(write: Write, run: Run, attempt: Attempt, entries: Sequence[_Entry]) -> None:
    numbers = []
    for entry in entries:
        if isinstance(entry, MalformedLine):
            raise entry
        if entry.kind in _NUMBERS:
            numbers.append(entry)
        else:
            _apply_fact(write, run, attempt, entry)
    _apply_numbers(write, run, attempt, numbers)


def _apply_numbers(write: Write, run: Run, attempt: Attempt, events: Sequence[Event]) -> None:
    rows = [
        metrics.Row(event.data["step"], event.data["epoch"], event.at, event.data["values"])
        for event in events
        if event.kind is Kind.METRICS
    ]
    metrics.add(write, run.id, attempt.number, rows)
    if newest := {key: value for row in rows for key, value in row.values.items()}:
        run.latest = {**(run.latest or {}), **{key: spell(value) for key, value in newest.items()}}
    if progress := [event.data["progress"] for event in events if event.data["progress"]]:
        run.progress = progress[-1]


def _apply_fact(write: Write, run: Run, attempt: Attempt, event: Event) -> None:
    data = event.data
    runs.add_event(write, run.id, attempt.number, event.kind, event.at, data.get("step"), data)
    if event.kind is Kind.STARTED:
        attempt.resumed_from_step = data["resumed_from_step"]
        if run.state == State.STARTING:
            runs.set_state(write, run, advance(State.STARTING, Fact.STARTED), started_at=run.started_at or event.at)
    elif event.kind is Kind.PLAN:
        run.plan = data
    elif event.kind is Kind.PHASE:
        run.phase = data["phase"]
    elif event.kind is Kind.CHECKPOINT:
        _checkpoint(write, run, attempt, event)
    elif event.kind in ENDINGS:
        attempt.ending, attempt.ending_data = event.kind, data


def _checkpoint(write: Write, run: Run, attempt: Attempt, event: Event) -> None:
    """Note a checkpoint, and which others are left. A worker also tells of the one it resumes from: it may have died
    between writing it and saying so."""
    data = event.data
    listed = [row for row in runs.checkpoints(write.session, run.id) if row.removed_at is None]
    known = [row for row in listed if row.step == data["step"] and row.files == data["files"]]
    for row in listed:
        if row.step not in data["kept_steps"] or (row.step == data["step"] and row not in known):  # a step saved again is another
            row.removed_at = event.at
    if known:
        return
    write.session.add(
        Checkpoint(
            id=f"ckpt_{uuid7()}",
            run_id=run.id,
            attempt=attempt.number,
            step=data["step"],
            name=data["name"],
            bytes=sum(file["bytes"] for file in data["files"].values()),
            files=data["files"],
            created_at=event.at,
        )
    )
