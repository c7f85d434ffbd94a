"""From a worker's journal to rows: each line once, whatever is killed when.

The rows of a stretch and the offset behind it are committed in one transaction; after any crash the next look
begins at the stored offset. Returns what the lines say about the attempt's life; the supervisor acts on it.
"""

from __future__ import annotations

from typing import Any

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
    before = attempt.journal_offset
    for entry, offset in read_journal(directory.journal, attempt.journal_offset, BLOCK_BYTES):
        if isinstance(entry, MalformedLine):
            runs.add_event(write, run.id, attempt.number, "warning", run.updated_at, None, {"message": f"journal: {entry}"})
        else:
            _apply(write, run, attempt, entry)
        attempt.journal_offset = offset
    return attempt.journal_offset != before


def _apply(write: Write, run: Run, attempt: Attempt, event: Event) -> None:
    data = event.data
    if event.kind is Kind.METRICS:
        metrics.add(write, run.id, attempt.number, data["step"], data["epoch"], event.at, data["values"])
        run.latest = {**(run.latest or {}), **_spelled(data["values"])}
        if data["progress"]:
            _progress(write, run, data["progress"])
        return
    if event.kind is Kind.PROGRESS:
        _progress(write, run, data["progress"])
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


def _progress(write: Write, run: Run, progress: dict[str, Any]) -> None:
    run.progress = progress
    write.tell(Message(0, run.id, "progress", progress))


def _checkpoint(write: Write, run: Run, attempt: Attempt, event: Event) -> None:
    data = event.data
    gone = {*data["removed_steps"], data["step"]}  # a step saved again replaces its older writing
    for old in runs.checkpoints(write.session, run.id):
        if old.step in gone and old.removed_at is None:
            old.removed_at = event.at
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
