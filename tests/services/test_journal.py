"""journal.py: each line becomes rows once, whatever is killed when."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.services import journal
from app.store import metrics, runs
from app.store.engine import Message, Store, migrate
from app.store.tables import Attempt, Run
from cognate.config import resolve
from cognate.events import Kind
from cognate.rundir import AttemptDir, Journal, RunDir


class PowerCutError(BaseException):
    pass


@pytest.fixture
def told() -> list[Message]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[Message]) -> Store:
    migrate(tmp_path / "cognate.db")
    store = Store(tmp_path / "cognate.db", told.extend)
    with store.write() as write:
        write.session.add(
            Run(id="run_1", name="n", preset="p", config={}, tags=[], created_at=0, updated_at=0, state="starting", attempt=1)
        )
        write.session.flush()
        write.session.add(Attempt(run_id="run_1", number=1, device="cpu", launched_at=0))
    return store


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    run = RunDir(tmp_path / "runs" / "run_1")
    run.create(resolve("quickstart"))
    attempt = run.attempt(1)
    attempt.create()
    return attempt


def take(store: Store, attempt: AttemptDir, fail: bool = False) -> None:
    with store.write() as write:
        run = runs.get(write.session, "run_1")
        journal.ingest(write, run, runs.attempt(write.session, "run_1", 1), attempt)
        if fail:
            raise PowerCutError


def write_row(lines: Journal, step: int) -> None:
    lines.append(Kind.METRICS, step=step, epoch=0.0, values={"loss": 1.0 / step}, progress={})


def test_lines_become_rows_once_whatever_breaks_in_between(store: Store, attempt: AttemptDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows and the offset behind them are one transaction; cut anywhere, even inside a line, nothing is lost or doubled."""
    monkeypatch.setattr(journal, "BLOCK_BYTES", 300)
    draw = random.Random(0)
    lines = Journal(attempt)
    lines.append(Kind.STARTED, resumed_from_step=None)
    step = 0
    for _ in range(150):
        if draw.random() < 0.5:
            step += 1
            write_row(lines, step)
        if draw.random() < 0.4:
            with pytest.raises(PowerCutError):
                take(store, attempt, fail=True)
        else:
            take(store, attempt)
    for _ in range(50):
        take(store, attempt)
    with store.read() as session:
        assert metrics.columns(session, "run_1", ["loss"], effective=False)["step"] == list(range(1, step + 1))
        assert runs.get(session, "run_1").state == "running"
    store.close()


def test_a_malformed_line_becomes_a_warning_and_the_rest_is_taken(store: Store, attempt: AttemptDir) -> None:
    lines = Journal(attempt)
    write_row(lines, 1)
    with attempt.journal.open("ab") as file:
        file.write(b"\x00\x00\x00\n")
    write_row(lines, 2)
    take(store, attempt)
    with store.read() as session:
        assert [event.kind for event in runs.events(session, "run_1", 0, 10)] == ["warning"]
        assert metrics.columns(session, "run_1", ["loss"])["step"] == [1, 2]
    store.close()


def test_a_line_that_cannot_be_applied_becomes_a_warning_and_the_rest_is_taken(
    store: Store, attempt: AttemptDir, told: list[Message]
) -> None:
    """It would otherwise be tried again for ever, and the run never be concluded."""
    lines = Journal(attempt)
    write_row(lines, 1)
    write_row(lines, 1)  # a second row for the same step and attempt
    lines.append(Kind.METRICS, step=2, epoch=0.0, values={"no_such_metric": 1.0}, progress={})
    lines.append(Kind.PLAN)
    lines.append(Kind.STARTED)
    write_row(lines, 3)
    take(store, attempt)
    with store.read() as session:
        assert metrics.columns(session, "run_1", ["loss"])["step"] == [1, 3]
        events = runs.events(session, "run_1", 0, 10)
        assert [event.kind for event in events].count("warning") == 3
        kept = [*metrics.columns(session, "run_1", ["loss"])["seq"], *(event.seq for event in events)]
    assert [message.seq for message in told if message.seq] == sorted(kept)
    store.close()


@pytest.mark.parametrize("bad", [1, 32, 50, 63, 64])
def test_one_bad_row_in_a_stretch_costs_no_other(store: Store, attempt: AttemptDir, told: list[Message], bad: int) -> None:
    """A stretch is applied at once, and again by halves when that fails: each row is told once, in the order of the numbers."""
    lines = Journal(attempt)
    for step in range(1, 65):
        lines.append(Kind.METRICS, step=None if step == bad else step, epoch=0.0, values={"loss": step}, progress={"step": step})
    take(store, attempt)
    take(store, attempt)
    with store.read() as session:
        rows = metrics.columns(session, "run_1", ["loss"])
        assert rows["step"] == [step for step in range(1, 65) if step != bad]
        assert [event.kind for event in runs.events(session, "run_1", 0, 10)] == ["warning"]
        replayed = sorted([*rows["seq"], runs.events(session, "run_1", 0, 10)[0].seq])
        run = runs.get(session, "run_1")
        assert (run.latest, run.progress) == ({"loss": 64 - (bad == 64)}, {"step": 64 - (bad == 64)})
    assert [message.seq for message in told if message.seq] == replayed
    assert [message.type for message in told if not message.seq] == ["progress"]
    store.close()


def test_rows_and_facts_keep_the_order_of_their_lines(store: Store, attempt: AttemptDir, told: list[Message]) -> None:
    lines = Journal(attempt)
    for step in (1, 2, 3, 4):
        write_row(lines, step)
        lines.append(Kind.PROGRESS, progress={"step": step})
        if step % 2 == 0:
            lines.append(Kind.SAMPLE, step=step, text="x")
    take(store, attempt)
    assert [(message.type, message.body.get("step")) for message in told if message.seq] == [
        ("metrics", 1),
        ("metrics", 2),
        ("event", 2),
        ("metrics", 3),
        ("metrics", 4),
        ("event", 4),
    ]
    seqs = [message.seq for message in told if message.seq]
    assert seqs == sorted(seqs)
    store.close()


@pytest.mark.parametrize("values", [{"loss": 10**400}, {"loss": None}, {"loss": [1]}, {"loss": "inf"}, {"x": 1.0}])
def test_no_value_keeps_the_journal_waiting(store: Store, attempt: AttemptDir, values: dict[str, Any]) -> None:
    """A number too large for a float is no ValueError; it would be tried again at every look, for ever."""
    lines = Journal(attempt)
    with attempt.journal.open("a") as file:
        line = {"seq": 1, "at": 0.0, "kind": "metrics", "step": 1, "epoch": 0.0, "values": values, "progress": {}}
        file.write(json.dumps(line) + "\n")
    write_row(lines, 2)
    lines.append(Kind.METRICS, step=2**70, epoch=0.0, values={"loss": 1.0}, progress={})
    take(store, attempt)
    with store.read() as session:
        assert metrics.columns(session, "run_1", ["loss"])["step"] == [2]
        assert [event.kind for event in runs.events(session, "run_1", 0, 10)] == ["warning", "warning"]
    store.close()


def test_the_checkpoints_that_are_left_are_those_the_worker_names(store: Store, attempt: AttemptDir) -> None:
    """Also after a death between deleting and saying so: the next worker tells of the one it resumes from, and mends the list."""
    lines = Journal(attempt)
    for step, digest, kept in ((10, "x", [10]), (20, "y", [10, 20]), (20, "y", [20]), (20, "z", [20])):
        files = {"a": {"bytes": step, "sha256": digest}}
        lines.append(Kind.CHECKPOINT, step=step, name=f"step_{step:06d}", files=files, kept_steps=kept, serial=None)
    take(store, attempt)
    with store.read() as session:
        found = [(row.step, row.files["a"]["sha256"], row.removed_at is None) for row in runs.checkpoints(session, "run_1")]
    assert found == [(10, "x", False), (20, "y", False), (20, "z", True)]
    store.close()


def test_a_checkpoint_that_was_refused_is_listed_no_longer(store: Store, attempt: AttemptDir) -> None:
    """The worker fell back over a damaged step 30 to step 20, tells of 20 again, and of what is left."""
    lines = Journal(attempt)
    for step, kept in ((20, [20]), (30, [20, 30]), (20, [20])):
        files = {"a": {"bytes": step, "sha256": "x"}}
        lines.append(Kind.CHECKPOINT, step=step, name=f"step_{step:06d}", files=files, kept_steps=kept, serial=None)
    take(store, attempt)
    with store.read() as session:
        assert [(row.step, row.removed_at is None) for row in runs.checkpoints(session, "run_1")] == [(20, True), (30, False)]
    store.close()
