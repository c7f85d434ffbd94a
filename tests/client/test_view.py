"""What a person sees: the same words with a terminal and without, colours and a moving bar with one only."""

import io
from typing import Any

import pytest
from rich.console import Console

from app.client import live, view
from app.client.live import Bar, Lines
from tests.client.conftest import a_run
from tests.client.test_stream import batch, snapshot, state


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), highlight=False, width=100, force_terminal=terminal, color_system="standard" if terminal else None)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), ("NaN", "NaN"), (2.5, "2.5"), (26974561.0, "26,974,561"), (0.000012345, "1.234e-05"), (1234.56, "1235"), (-3.0, "-3")],
)
def test_a_number_is_short_and_never_invented(value: Any, text: str) -> None:
    assert view.number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (83.4, "0:01:23"), (3599.6, "1:00:00"), (360_000, "100:00:00")])
def test_a_duration_is_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert view.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (2048, "2 KiB"), (432 << 20, "432 MiB"), (3 << 29, "1.5 GiB")]
)
def test_a_size_is_in_the_unit_that_fits(count: int, text: str) -> None:
    assert view.size(count) == text


def test_a_row_is_a_line_with_what_was_measured() -> None:
    out = console()
    Lines(out, replayed=False)(a_run(1), batch(4) | {"columns": batch(4)["columns"] | {"val_loss": ["NaN"]}})
    assert said(out) == "step      4/60  epoch 0.50  loss 0.25  val_loss NaN  1,234 tokens/s  0:01:23 to go\n"


def test_a_state_and_a_loss_are_said_once_however_often_they_are_told() -> None:
    """Each new connection begins with a snapshot."""
    out = console()
    lines = Lines(out, replayed=False)
    lines(a_run(1), snapshot())
    lines(a_run(1), {"type": "lost", "detail": "reset [by] peer"})
    lines(a_run(1), {"type": "lost", "detail": "refused"})
    lines(a_run(1), snapshot())
    lines(a_run(1, state="paused", state_reason="user_pause"), state(3, "paused"))
    first, lost, paused = said(out).splitlines()
    assert first.startswith("tiny-1  running: training  step 15/60")
    assert lost == "connection lost (reset [by] peer); trying again"
    assert paused.endswith("(this waits until it is resumed)")


def test_where_the_past_is_told_the_present_waits_for_its_turn() -> None:
    out = console()
    Lines(out, replayed=True)(a_run(1, state="completed"), snapshot(state="completed"))
    assert said(out) == ""


def test_a_warning_and_a_checkpoint_are_said_as_they_are() -> None:
    out = console()
    for kind, data in (("warning", {"message": "[red]not markup"}), ("checkpoint", {"name": "step_000015"}), ("plan", {})):
        Lines(out, replayed=False)(a_run(1), {"type": "event", "kind": kind, "step": 15, "data": data})
    assert said(out) == "warning: [red]not markup\ncheckpoint: step_000015\n"


def test_a_bar_shows_progress_state_and_what_is_measured() -> None:
    out = console(terminal=True)
    with Bar(out, replayed=False) as bar:
        bar(a_run(1), batch(4))
    drawn = said(out)
    assert "step      4/60" not in drawn  # a row moves the bar; it is no line
    out = console()
    out.print(live.bar(a_run(1)))
    assert "tiny-1" in said(out)
    assert "running: training" in said(out)
    assert "step 15/60  epoch 0.25  1,234 tokens/s  0:01:23 to go  loss 2.5" in said(out)


def test_a_bar_says_that_the_connection_is_lost() -> None:
    out = console()
    out.print(live.bar(a_run(1), "connection lost (reset); trying again"))
    assert said(out).splitlines()[1].strip() == "connection lost (reset); trying again"
