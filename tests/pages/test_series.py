"""static/js/series.js, run in the browser it is written for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.pages.conftest import Server, page_of

pytestmark = pytest.mark.page

SHOW = """async (batches) => {
  const { Series } = await import("/static/js/series.js");
  const series = new Series();
  for (const batch of batches) series.add(batch);
  return { steps: series.steps, epochs: series.epochs, loss: series.values("loss"), val_loss: series.values("val_loss"),
           nonfinite: series.nonfinite("loss"), last: series.last("loss") };
}"""


@pytest.fixture(scope="module")
def show(browser: Browser, server: Server) -> Iterator[Any]:
    """What a series holds after taking in some batches."""
    with page_of(browser, server.url) as page:
        page.goto("/static/docs.css")  # any document of this origin can import the module
        yield lambda *batches: page.evaluate(SHOW, list(batches))


def batch(steps: list[int], *, attempt: int = 1, **columns: list[Any]) -> dict[str, list[Any]]:
    axes = {
        "seq": steps,
        "attempt": [attempt] * len(steps),
        "step": steps,
        "epoch": [step / 10 for step in steps],
        "at": [0.0] * len(steps),
    }
    return {**axes, **columns}


def test_a_row_that_comes_twice_is_there_once(show: Any) -> None:
    """History and the replay after a reconnect overlap."""
    shown = show(batch([1, 2, 3], loss=[3.0, 2.0, 1.0]), batch([2, 3, 4], loss=[2.0, 1.0, 0.5]))
    assert shown["steps"] == [1, 2, 3, 4]
    assert shown["loss"] == [3.0, 2.0, 1.0, 0.5]


def test_history_that_arrives_after_live_rows_goes_before_them(show: Any) -> None:
    shown = show(batch([4, 5], loss=[4.0, 5.0]), batch([1, 2, 3], loss=[1.0, 2.0, 3.0]))
    assert shown["steps"] == [1, 2, 3, 4, 5]
    assert shown["loss"] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert shown["epochs"] == [0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_step_trained_again_after_a_resume_keeps_the_later_row(show: Any) -> None:
    shown = show(batch([1, 2, 3], loss=[3.0, 2.0, 1.0], val_loss=[None, None, 9.0]), batch([3, 4], attempt=2, loss=[1.5, 1.2]))
    assert shown["loss"] == [3.0, 2.0, 1.5, 1.2]
    assert shown["val_loss"] == [None, None, None, None]


def test_an_earlier_attempt_never_replaces_a_later_one(show: Any) -> None:
    shown = show(batch([3], attempt=2, loss=[1.5]), batch([2, 3], attempt=1, loss=[2.0, 1.0]))
    assert shown["loss"] == [2.0, 1.5]


def test_what_was_not_measured_is_a_gap_and_not_a_zero(show: Any) -> None:
    shown = show(batch([1], loss=[1.0]), batch([2], loss=[2.0], val_loss=[2.5]), batch([3], loss=[None], val_loss=[None]))
    assert shown["loss"] == [1.0, 2.0, None]
    assert shown["val_loss"] == [None, 2.5, None]


def test_what_is_not_finite_keeps_its_name_and_place(show: Any) -> None:
    shown = show(batch([1, 2, 3], loss=[1.0, "NaN", "-Infinity"]))
    assert shown["loss"] == [1.0, None, None]
    assert shown["nonfinite"] == [{"step": 2, "value": "NaN"}, {"step": 3, "value": "-Infinity"}]
    assert shown["last"] == {"step": 3, "value": "-Infinity"}


def test_a_finite_value_of_a_later_attempt_clears_the_mark(show: Any) -> None:
    shown = show(batch([2], loss=["NaN"]), batch([2], attempt=2, loss=[1.0]))
    assert shown["nonfinite"] == []
    assert shown["loss"] == [1.0]
