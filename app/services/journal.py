"""From a worker's journal to rows: each line once, whatever is killed when.

The rows of a stretch and the offset behind it are committed in one transaction; after any crash the next look
begins at the stored offset. What the lines say of the attempt's end is noted in its row; the supervisor acts on it.
"""

from __future__ import annotations

import time

from sqlalchemy.exc import SQLAlchemyError
from uuid_utils import uuid7

from app.services.lifecycle import Fact, State, advance
from app.store import metrics, runs
from app.store.engine import Message, Write
from app.store.tables import Attempt, Checkpoint, Run
from cognate.events import ENDINGS, Event, Kind, MalformedLine, spell
from cognate.rundir import AttemptDir, read_journal

BLOCK_BYTES = 1 << 20


def ingest(write: Write, run: Run, attempt: Attempt, directory: AttemptDir) -> bool:
    """Take up to BLOCK_BYTES of new lines; whether there were any."""
    before, progress = attempt.journal_offset, run.progress
    for entry, offset in read_journal(directory.journal, attempt.journal_offset, BLOCK_BYTES):
        if isinstance(entry, MalformedLine):
            _warn(write, run, attempt, entry)
        else:
            _apply_or_warn(write, run, attempt, entry)
        attempt.journal_offset = offset
    if run.progress is not progress:
        write.tell(Message(0, run.id, "progress", run.progress or {}))
    return attempt.journal_offset != before


def _apply_or_warn(write: Write, run: Run, attempt: Attempt, event: Event) -> None:
    """A line that cannot be applied must not keep the rest of the journal waiting for ever."""
    told = len(write.messages)
    try:
        with write.session.begin_nested():
            _apply(write, run, attempt, event)
    except (LookupError, TypeError, ValueError, SQLAlchemyError) as error:
        del write.messages[told:]
        _warn(write, run, attempt, error)


def _warn(write: Write, run: Run, attempt: Attempt, error: Exception) -> None:
    message = f"a line of the journal was passed over: {type(error).__name__}: {error}"[:500]
    runs.add_event(write, run.id, attempt.number, "warning", time.time(), None, {"message": message})


def _apply(write: Write, run: Run, attempt: Attempt, event: Event) -> None:
    data = event.data
    if event.kind is Kind.METRICS:
        metrics.add(write, run.id, attempt.number, data["step"], data["epoch"], event.at, data["values"])
        run.latest = {**(run.latest or {}), **_spelled(data["values"])}
        run.progress = data["progress"] or run.progress
        return
    if event.kind is Kind.PROGRESS:
        run.progress = data["progress"]
        return
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


def _spelled(values: dict[str, float]) -> dict[str, float | str]:
    return {key: spell(value) for key, value in values.items()}
