"""A run's progress as it happens: JSON lines for programs, a line a row where nobody watches, a bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.client.api import Json
from app.client.stream import rows
from app.client.view import event_words, number, pace, progress_line, state

WATCHED = ("loss", "val_loss", "grad_norm")


class JsonLines:
    """A stream for programs: the run as it is, then every row and event with its cursor, and progress as it passes."""

    def __init__(self, print_line: Callable[[Json], None]) -> None:
        self._print_line = print_line

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, run: Json, frame: Json) -> None:
        match frame["type"]:
            case "snapshot":
                self._print_line({"type": "run", "run": run})
            case "batch":
                for row in rows(frame):
                    self._print_line({"type": "row", **row})
            case "event" | "progress" | "gap":
                self._print_line(frame)


class Lines:
    """A stream in lines, one a logged row. `replayed`: the past is told too, and leads to the state that the snapshot has."""

    def __init__(self, console: Console, *, replayed: bool) -> None:
        self._console = console
        self._replayed = replayed
        self._is_lost = False
        self._said: tuple[Any, ...] = ()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, run: Json, frame: Json) -> None:
        match frame["type"]:
            case "snapshot" if not self._replayed:
                self._say_state(run)
            case "batch":
                for row in rows(frame):
                    self._console.print(_row_line(run["progress"], row), markup=False)
            case "event" if frame["kind"] == "state":
                self._say_state(run)
            case "event" if frame["kind"] in ("checkpoint", "warning", "alert", "alert_cleared"):
                style = "yellow" if frame["kind"] in ("warning", "alert") else ""
                self._console.print(Text(f"{frame['kind']}: {event_words(frame['kind'], frame['step'], frame['data'])}", style))
            case "lost" if not self._is_lost:
                self._console.print(_lost(frame), markup=False)
        self._is_lost = frame["type"] == "lost"

    def _say_state(self, run: Json) -> None:
        said = (run["state"], run["state_reason"], run["state_detail"])
        if said != self._said:  # a snapshot after a lost connection often says nothing new
            wait = "  (this waits until it is resumed)" if run["state"] == "paused" else ""
            self._console.print(Text.assemble(f"{run['name']}  ", state(run, detail=True), f"  {progress_line(run)}{wait}".rstrip()))
        self._said = said


class Bar(Lines):
    """A stream on a terminal: rows move a bar, which stays below what else is said."""

    def __init__(self, console: Console, *, replayed: bool) -> None:
        super().__init__(console, replayed=replayed)
        self._run: Json = {}
        self._lost = ""
        self._live = Live(console=console, get_renderable=self._drawn, refresh_per_second=4, transient=True)

    def __enter__(self) -> Bar:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, run: Json, frame: Json) -> None:
        self._run = run
        self._lost = _lost(frame) if frame["type"] == "lost" else ""
        if frame["type"] not in ("batch", "lost"):
            super().__call__(run, frame)

    def _drawn(self) -> RenderableType:
        return bar(self._run, self._lost)


def bar(run: Json, lost: str = "") -> RenderableType:
    if not run:
        return Text("connecting ...")
    progress = run["progress"] or {}
    total = progress.get("total_steps")
    line = Table.grid(padding=(0, 2))
    line.add_row(run["name"], ProgressBar(total, progress.get("step", 0), width=30, pulse=total is None), state(run))
    measured = [f"{key} {number(run['metrics'][key])}" for key in WATCHED if key in run["metrics"]]
    told = "  ".join(words for words in (progress_line(run), *measured) if words)
    return Group(line, Text(lost or told, "yellow" if lost else ""))


def _row_line(progress: Json, row: Json) -> str:
    values = [f"{key} {number(row['values'][key])}" for key in WATCHED if key in row["values"]]
    return "  ".join([f"step {row['step']:>6}/{progress.get('total_steps') or '?'}", f"epoch {row['epoch']:.2f}", *values, *pace(progress)])


def _lost(frame: Json) -> str:
    return f"connection lost ({frame['detail']}); trying again"
