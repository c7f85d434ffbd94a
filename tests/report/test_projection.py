"""From a step to a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.config import resolve
from cognate.report.projection import checkpoints_held, project_disk, project_time, row_bytes, steps_done
from tests.report.test_verdict import FACTS, PROBE

TRAINING = resolve("reasoning").training
STEPS = st.lists(st.integers(1, 1000), min_size=1, max_size=20)


@given(STEPS, st.integers(1, 20_000))
def test_the_steps_of_all_epochs_are_those_of_the_run(steps: list[int], wanted: int) -> None:
    total = min(wanted, sum(steps))
    done = steps_done(steps, total)
    assert sum(done) == total
    assert list(done[:-1]) == steps[: len(done) - 1], "only the last epoch may be cut short"
    assert 0 < done[-1] <= steps[len(done) - 1]


@given(STEPS, st.floats(1e-4, 1e3))
def test_time_is_steps_times_a_step(steps: list[int], step_s: float) -> None:
    plan = replace(FACTS.plan, steps_per_epoch=tuple(steps), total_steps=sum(steps), epochs=len(steps))
    time = project_time(plan, replace(PROBE, step_s=step_s))
    assert time.total_s == pytest.approx(step_s * sum(steps))
    assert len(time.epochs_s) == len(steps)
    assert f"{sum(steps):,} steps" in time.basis
    assert PROBE.basis in time.basis


@pytest.mark.parametrize(
    ("steps", "keep", "held"),
    [
        ((100,), 3, 1),  # the end of the only epoch
        ((600,), 3, 2),  # and step 500
        ((5000, 5000), 3, 5),  # the newest, the best, and the one being written
        ((5000, 5000), 8, 10),
    ],
)
def test_checkpoints_that_are_there_at_a_time(steps: tuple[int, ...], keep: int, held: int) -> None:
    plan = replace(FACTS.plan, steps_per_epoch=steps, total_steps=sum(steps))
    assert checkpoints_held(plan, TRAINING.model_copy(update={"keep_checkpoints": keep})) == held


def test_rows_are_counted_twice_and_progress_once_a_second_at_most() -> None:
    plan = replace(FACTS.plan, steps_per_epoch=(1000,), total_steps=1000, epochs=1)
    rows = 1 + 20 + 1  # the first, every 50th, the end of the epoch
    assert row_bytes(plan, TRAINING, replace(PROBE, step_s=0.1)) == 2 * rows * 700 + 100 * 300
    assert row_bytes(plan, TRAINING, replace(PROBE, step_s=9.0)) == 2 * rows * 700 + 1000 * 300


def test_disk_says_what_it_does_not_count() -> None:
    with_rows = project_disk(FACTS.plan, FACTS.network, TRAINING, PROBE)
    without = project_disk(FACTS.plan, FACTS.network, TRAINING, None)
    assert with_rows.total_bytes == with_rows.checkpoints_bytes + (with_rows.rows_bytes or 0) > without.total_bytes
    assert without.rows_bytes is None
    assert "without the rows" in without.basis
    nothing = project_disk(replace(FACTS.plan, steps_per_epoch=(), total_steps=0), FACTS.network, TRAINING, None)
    assert (nothing.checkpoints, nothing.basis) == (0, "not known, for without data there are no steps to make")
