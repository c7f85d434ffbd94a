"""What others wrote, on a terminal: datasets, models, logs, a service. What would command the terminal is shown instead.

Where the output is no terminal it passes as it is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import IO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # control characters but tab and newline


def visible(text: str, stream: IO[str] | None = None) -> str:
    """`text` for `stream`, by default standard output: on a terminal escape is \\u001b, as JSON would have it."""
    if not (stream or sys.stdout).isatty():
        return text
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: str, *, nl: bool = True, err: bool = False) -> None:
    typer.echo(visible(text, sys.stderr if err else sys.stdout), nl=nl, err=err)


class Screen(Console):
    """A console on which whatever is printed is visible(); its own colours and movements stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text, self.file), segment.style)
