"""memory.py: how a run that ran out of memory goes on, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from app.services.memory import answer, fewer_rows
from cognate.config import resolve


@pytest.mark.parametrize(
    ("batch", "rows", "fewer"), [(16, 16, 8), (16, 8, 4), (12, 12, 6), (12, 6, 3), (12, 3, 1), (7, 7, 1), (4, 1, None)]
)
def test_fewer_rows_divide_the_batch_and_end_at_one(batch: int, rows: int, fewer: int | None) -> None:
    assert fewer_rows(batch, rows) == fewer


@pytest.mark.parametrize(
    ("training", "plan", "rows_at_most", "phase", "rows", "fewer", "said"),
    [
        ({}, {}, None, "compiling", 16, 8, "16 rows of a batch at once were too many; from now on 8"),
        ({}, {"rows_at_once": 8}, None, "training", 8, 4, "8 rows of a batch at once were too many; from now on 4"),
        ({}, {"rows_at_once": 8}, 4, "compiling", 4, 2, "4 rows of a batch at once were too many; from now on 2"),  # an older plan
        ({"micro_batch_size": 4}, {}, None, "compiling", 4, 2, "4 rows of a batch at once were too many; from now on 2"),
        ({"micro_batch_size": 64}, {}, None, "compiling", 16, 8, "16 rows of a batch at once were too many; from now on 8"),
        ({}, {"rows_at_once": 1}, 1, "training", 1, None, "a batch went through the model row by row already"),
        ({}, {}, None, "loading_data", 16, None, "it happened before there was a batch, so fewer rows at once are no remedy"),
        ({}, {}, None, None, 16, None, "it happened before there was a batch, so fewer rows at once are no remedy"),
    ],
)
def test_half_the_rows_of_what_was_tried(
    training: dict[str, Any], plan: dict[str, Any], rows_at_most: int | None, phase: str | None, rows: int, fewer: int | None, said: str
) -> None:
    config = resolve("reasoning", {"training": training})
    found, alert = answer(config, plan, rows_at_most, "oom_cuda", phase, 40)
    assert (found, alert.message) == (fewer, said)
    assert (alert.evidence["rows_at_once"], alert.evidence["rows_from_now_on"]) == (rows, fewer)


def test_it_can_be_left_at_that() -> None:
    config = resolve("reasoning", {"health": {"on_out_of_memory": "fail"}})
    fewer, alert = answer(config, {"rows_at_once": 8}, None, "oom_cuda", "training", 40)
    assert (fewer, alert.evidence["rows_from_now_on"]) == (None, None)
    assert "health.on_out_of_memory" in alert.message


@pytest.mark.parametrize(("step", "over_after"), [(40, 90), (980, 999), (1000, 999)])
def test_it_is_over_with_a_row_behind_the_step_that_failed_or_at_the_runs_end(step: int, over_after: int) -> None:
    """Rows come every 50 steps and at the end: the one at step 1,000 is the last there is."""
    _, alert = answer(resolve("reasoning"), {"rows_at_once": 8, "total_steps": 1000}, None, "oom_cuda", "training", step)
    assert alert.evidence["over_after_step"] == over_after
