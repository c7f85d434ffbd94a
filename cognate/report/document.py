"""A report as a list of blocks, written as Markdown or as one HTML file that needs nothing else.

The HTML has no script, and its only style is STYLE; colours of charts are attributes, which every content security policy allows.
Text is escaped in both: a warning or a run's name may hold anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

Cell = str | None  # None: not measured


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Columns whose name is in `numbers` are set to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Charts:
    """SVGs under a heading; Markdown leaves them out, the tables have their numbers."""

    title: str
    svgs: Sequence[str]


Block = Heading | Text | Items | Table | Charts

NOT_MEASURED: Final = "–"
SHORT: Final = 28  # characters of a cell that stay on one line

STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #8884; padding-bottom: .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .75rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8884; text-align: left; vertical-align: top; }
th, .number, .short { white-space: nowrap; } .number { text-align: right; } td:last-child { min-width: 14rem; } .absent { color: #888; }
.charts { display: flex; flex-wrap: wrap; align-items: end; gap: 1rem; } svg { max-width: 100%; height: auto; }
"""


def to_markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(part for part in map(_markdown, blocks) if part) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n" + "\n".join(map(_html, blocks)) + "\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Items(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table(columns, rows, numbers):
            rule = ["---:" if column in numbers else "---" for column in columns]
            lines = [
                [_plain(column) for column in columns],
                rule,
                *([_plain(NOT_MEASURED if cell is None else cell) for cell in row] for row in rows),
            ]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Charts():
            return ""


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Items(items):
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Table(columns, rows, numbers):
            head = "".join(_cell("th", column, column in numbers) for column in columns)
            body = "\n".join(
                f"<tr>{''.join(_cell('td', cell, column in numbers) for column, cell in zip(columns, row, strict=True))}</tr>"
                for row in rows
            )
            return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        case Charts(title, svgs):
            return f'<h2>{escape(title)}</h2>\n<div class="charts">{"".join(svgs)}</div>'


def _cell(tag: str, cell: Cell, is_number: bool) -> str:
    is_short = not is_number and cell is not None and len(cell) <= SHORT
    kinds = " ".join(kind for kind, applies in (("number", is_number), ("short", is_short), ("absent", cell is None)) if applies)
    attribute = f' class="{kinds}"' if kinds else ""
    return f"<{tag}{attribute}>{escape(NOT_MEASURED if cell is None else cell)}</{tag}>"


def _plain(text: str) -> str:
    """The text as Markdown shows it, on one line: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]|<>#~])", r"\\\1", " ".join(text.split()))
