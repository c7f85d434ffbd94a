"""store/metrics.py: thinning against its definition, worked out in Python; rows in pages."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.store import metrics
from app.store.engine import Message, Store, migrate
from app.store.tables import Attempt, Run

Rows = list[metrics.Row]


@pytest.fixture
def told() -> list[Message]:
    return []


@pytest.fixture
def store(tmp_path: Path, told: list[Message]) -> Iterator[Store]:
    migrate(tmp_path / "cognate.db")
    store = Store(tmp_path / "cognate.db", told.extend)
    with store.write() as write:
        write.session.add(Run(id="run_1", name="n", preset="p", config={}, tags=[], created_at=0, updated_at=0, state="running", attempt=3))
        write.session.flush()
        for number in (1, 2, 3):
            write.session.add(Attempt(run_id="run_1", number=number, device="cpu", launched_at=0))
    yield store
    store.close()


def row(step: int, **values: float) -> metrics.Row:
    return metrics.Row(step, step / 100, float(step), values)


def add(store: Store, *attempts: Rows) -> None:
    with store.write() as write:
        for number, rows in enumerate(attempts, start=1):
            metrics.add(write, "run_1", number, rows)


def thin(store: Store, max_points: int, keys: tuple[str, ...] = ("loss",), **more: Any) -> metrics.Thinned:
    with store.read() as session:
        return metrics.thinned(session, "run_1", keys, max_points, **more)


def thinned_by_hand(rows: list[tuple[int, Any]], width: int) -> metrics.Thinned:
    """What thinned() promises of `rows`, (step, loss) in their order."""
    begins = sorted({step - step % width for step, _ in rows})
    buckets = metrics.Buckets()
    table = metrics.Thinned(width, begins, [], {"loss": buckets})
    for begin in begins:
        within = [(step, value) for step, value in rows if begin <= step < begin + width]
        measured = [(step, value) for step, value in within if value is not None]
        finite = [value for _, value in measured if not isinstance(value, str)]
        table.rows.append(len(within))
        buckets.min.append(min(finite, default=None))
        buckets.max.append(max(finite, default=None))
        buckets.last_step.append(measured[-1][0] if measured else None)
        buckets.last.append(measured[-1][1] if measured else None)
        buckets.nonfinite.append(len(measured) - len(finite))
    return table


@pytest.mark.parametrize("effective", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_thinned_rows_are_what_the_definition_says(store: Store, seed: int, effective: bool) -> None:
    """Gaps, values not measured, values not finite, and stretches trained again, some of their steps by one attempt only."""
    draw = random.Random(seed)
    kinds = (lambda: draw.gauss(0, 1), lambda: math.nan, lambda: math.inf, lambda: -math.inf)

    def rows(first: int, last: int) -> Rows:
        steps = [step for step in range(first, last) if draw.random() < 0.7]
        return [row(step, **({"loss": draw.choices(kinds, (20, 1, 1, 1))[0]()} if draw.random() < 0.8 else {})) for step in steps]

    add(store, rows(3, 300), rows(200, 420), rows(250, 350))
    steps = (draw.randrange(100), draw.randrange(250, 500))
    with store.read() as session:
        everything = metrics.columns(session, "run_1", ["loss"], steps=steps, effective=False)
        of_run = metrics.columns(session, "run_1", ["loss"], steps=steps, effective=effective)
    found_rows = list(zip(everything["step"], everything["attempt"], everything["loss"], strict=True))
    assert [each[:2] for each in found_rows] == sorted(each[:2] for each in found_rows)
    if effective:
        found_rows = list({each[0]: each for each in found_rows}.values())  # the latest attempt comes last
    assert list(zip(of_run["step"], of_run["attempt"], of_run["loss"], strict=True)) == found_rows
    for max_points in (1, 2, 7, 40, 1000):
        found = thin(store, max_points, steps=steps, effective=effective)
        assert found == thinned_by_hand([(step, value) for step, _, value in found_rows], found.bucket_steps)
        assert len(found.step) <= max_points
        narrower = {step // (found.bucket_steps // 2) for step, _, _ in found_rows} if found.bucket_steps > 1 else set()
        assert found.bucket_steps == 1 or len(narrower) > max_points, "half the width would have done"


def test_rows_to_come_change_no_bucket_but_the_last(store: Store) -> None:
    """A chart that is asked for again while the run goes on must not tremble."""
    before = None
    for begin in range(0, 600, 25):
        add(store, [row(step, loss=math.sin(step)) for step in range(begin, begin + 25)])
        now = thin(store, 16)
        if before is not None and now.bucket_steps == before.bucket_steps:
            settled = len(before.step) - 1
            assert now.step[:settled] == before.step[:settled]
            assert now.metrics["loss"].max[:settled] == before.metrics["loss"].max[:settled]
        else:
            assert before is None or now.bucket_steps in (2 * before.bucket_steps, 4 * before.bucket_steps)
        before = now


def test_sparsely_logged_steps_are_not_thinned_for_nothing(store: Store) -> None:
    """Ten rows, a hundred steps apart, fit into ten points as they are."""
    add(store, [row(100 * number, loss=float(number)) for number in range(10)])
    found = thin(store, 10)
    assert found.metrics["loss"].min == found.metrics["loss"].max == found.metrics["loss"].last == [float(number) for number in range(10)]


def test_a_metric_measured_once_an_epoch_keeps_its_own_last_step(store: Store) -> None:
    add(store, [row(step, loss=1.0, **({"val_loss": step / 10} if step in (5, 21) else {})) for step in range(32)])
    found = thin(store, 4, keys=("loss", "val_loss"))
    assert found.step == [0, 8, 16, 24]
    assert found.metrics["val_loss"] == metrics.Buckets(
        [0.5, None, 2.1, None], [0.5, None, 2.1, None], [0.5, None, 2.1, None], [5, None, 21, None], [0] * 4
    )
    assert found.metrics["loss"].last_step == [7, 15, 23, 31]


def test_a_run_without_rows_has_no_buckets(store: Store) -> None:
    assert thin(store, 10) == metrics.Thinned(1, [], [], {"loss": metrics.Buckets()})


@pytest.mark.parametrize("effective", [True, False])
def test_pages_are_the_columns_in_pieces(store: Store, effective: bool) -> None:
    add(
        store, [row(step, loss=math.nan if step % 5 == 0 else 1.0) for step in range(1, 20)], [row(step, loss=2.0) for step in range(8, 30)]
    )
    pages: list[Any] = []
    with store.read() as session:
        while page := metrics.page(session, "run_1", ["loss"], 4, pages[-1] if pages else None, steps=(2, 25), effective=effective):
            assert len(page) <= 4
            pages += page
        columns = metrics.columns(session, "run_1", ["loss"], steps=(2, 25), effective=effective)
    assert [list(each) for each in pages] == [list(each) for each in zip(*columns.values(), strict=True)]
    assert "NaN" in columns["loss"]


def test_rows_are_told_as_they_are_read_back_later(store: Store, told: list[Message]) -> None:
    """Live and replayed messages are one stream."""
    add(store, [row(1, loss=0.5, val_loss=math.inf), row(2, loss=math.nan), row(3)])
    with store.read() as session:
        assert metrics.after(session, None, 0, 10, store.head) == metrics.after(session, "run_1", 0, 10, store.head) == told
        assert [message.seq for message in metrics.after(session, "run_1", 1, 1, store.head)] == [2]
    assert told[0].body["values"] == {"loss": 0.5, "val_loss": "Infinity"}


# --- amended rows -----------------------------------------------------------------------------------------


def test_a_row_that_is_amended_is_told_anew_and_whole(store: Store, told: list[Message]) -> None:
    """Under a new seq, so that nobody who comes back misses it; in its place, so that no step has two rows of one attempt."""
    add(store, [row(1, loss=3.0), row(2, loss=2.0)], [row(2, loss=math.nan, grad_norm=1.0)])
    head = store.head
    with store.write() as write:
        metrics.amend(write, "run_1", {"diversity_ltm_usage": 0.25})
    assert (told[-1].seq, store.head) == (head + 1, head + 1)
    assert told[-1].body == {
        "seq": head + 1, "attempt": 2, "step": 2, "epoch": 0.02, "at": 2.0,
        "values": {"loss": "NaN", "grad_norm": 1.0, "diversity_ltm_usage": 0.25},
    }  # fmt: skip
    with store.read() as session:
        everything = metrics.columns(session, "run_1", ("loss", "diversity_ltm_usage"), effective=False)
        missed = metrics.after(session, "run_1", head, 10, store.head)
    assert (everything["step"], everything["attempt"]) == ([1, 2, 2], [1, 1, 2])
    assert everything["diversity_ltm_usage"] == [None, None, 0.25]
    assert missed == [told[-1]]


def test_nothing_to_amend_changes_nothing(store: Store, told: list[Message]) -> None:
    with store.write() as write:
        metrics.amend(write, "run_1", {"diversity_ltm_usage": 0.25})
    add(store, [row(1, loss=3.0)])
    head = store.head
    with store.write() as write:
        metrics.amend(write, "run_1", {})
    assert (store.head, len(told)) == (head, 1)
