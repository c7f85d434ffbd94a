"""Line charts as SVG: a line for each run over the epochs, and bands for what was expected.

Drawn here because a plotting library brings eight packages and writes its colours as inline styles, which our security policy forbids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH, PLOT_HEIGHT = 480, 200
LEFT, RIGHT, BOTTOM = 58, 12, 30
LEGEND_ROW, LETTER = 16, 6.3
COLOURS: Final = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2")
MOST_POINTS: Final = 400  # of a line; of more, the extremes of each stretch are drawn


@dataclass(frozen=True)
class Line:
    """Points (x, y), finite. is_dotted: a few marked points, such as the ends of epochs"""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    is_dotted: bool = False


@dataclass(frozen=True)
class Band:
    """What y was expected to be at x."""

    x: float
    low: float
    high: float


def line_chart(title: str, unit: str, lines: Sequence[Line], bands: Sequence[Band] = (), *, is_log: bool = False) -> str | None:
    """The chart, or None where there is no point to draw. is_log: a logarithmic y axis, without what is not above 0"""
    drawn = [Line(line.name, _thinned([p for p in line.points if not is_log or p[1] > 0]), line.colour, line.is_dotted) for line in lines]
    points = [point for line in drawn for point in line.points]
    if not points:
        return None
    scale = math.log10 if is_log else float
    ys = [scale(y) for _, y in points] + [scale(end) for band in bands for end in (band.low, band.high)]
    xs = [x for x, _ in points] + [band.x for band in bands]
    x_ticks = ticks(min(0.0, *xs), max(xs), 6)
    y_ticks = log_ticks(min(ys), max(ys)) if is_log else ticks(min(ys), max(ys), 5)
    legend = _legend([(line.name, COLOURS[line.colour % len(COLOURS)]) for line in drawn] + ([("expected", "#888")] if bands else []))
    top = 24 + LEGEND_ROW * (legend[-1][1] + 1)
    height = top + PLOT_HEIGHT + BOTTOM
    low_x, high_x = min(x_ticks[0], *xs), max(x_ticks[-1], *xs)
    low_y, high_y = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def at(x: float, y: float) -> tuple[str, str]:
        across = LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f}", f"{top + (high_y - y) / (high_y - low_y) * PLOT_HEIGHT:.1f}"

    made = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="11" fill="currentColor">',
        f'<text x="{LEFT}" y="14" font-size="13" font-weight="600">{escape(title)}, {escape(unit)}</text>',
    ]
    for tick in y_ticks:
        _, y_at = at(low_x, tick)
        made.append(f'<path d="M{LEFT} {y_at}H{WIDTH - RIGHT}" stroke="#888" stroke-opacity=".25"/>')
        label = f"{10**tick:.3g}" if is_log else f"{tick:.6g}"
        made.append(f'<text x="{LEFT - 6}" y="{y_at}" dy=".32em" text-anchor="end">{label}</text>')
    for tick in x_ticks:
        x_at, _ = at(tick, low_y)
        made.append(f'<text x="{x_at}" y="{height - 12}" text-anchor="middle">{tick:.6g}</text>')
    for band in bands:
        x_at, upper = at(band.x, scale(band.high))
        _, lower = at(band.x, scale(band.low))
        made.append(f'<path d="M{x_at} {lower}V{upper}" stroke="#888" stroke-width="8" stroke-opacity=".45"/>')
    for line in drawn:
        made += _draw(line, [at(x, scale(y)) for x, y in line.points])
    for across, row, name, colour in legend:
        made.append(f'<circle cx="{across + 4:.0f}" cy="{28 + LEGEND_ROW * row}" r="4" fill="{colour}"/>')
        made.append(f'<text x="{across + 12:.0f}" y="{28 + LEGEND_ROW * row}" dy=".32em">{escape(name)}</text>')
    made.append(f'<text x="4" y="{height - 12}" fill-opacity=".6">epoch</text></svg>')
    return "".join(made)


def _legend(entries: Sequence[tuple[str, str]]) -> list[tuple[float, int, str, str]]:
    """(x, row, name, colour) of each entry: as many in a row as fit."""
    places: list[tuple[float, int, str, str]] = []
    across, row = float(LEFT), 0
    for name, colour in entries:
        width = 24 + LETTER * len(name)
        if across > LEFT and across + width > WIDTH:
            across, row = float(LEFT), row + 1
        places.append((across, row, name, colour))
        across += width
    return places


def log_ticks(low: float, high: float) -> list[float]:
    """Logarithms of 1, 2 and 5 times powers of ten around the logarithms `low` to `high`; of the powers alone, where there are many."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    every = [decade + math.log10(factor) for decade in decades for factor in factors]
    first = max((number for number, tick in enumerate(every) if tick <= low), default=0)
    last = min((number for number, tick in enumerate(every) if tick >= high), default=len(every) - 1)
    return every[first : max(last, first + 1) + 1]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from at most `low` to at least `high`, a step of 1, 2 or 5 times a power of ten apart; two at least."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _draw(line: Line, places: Sequence[tuple[str, str]]) -> list[str]:
    colour = COLOURS[line.colour % len(COLOURS)]
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    dashes = ' stroke-dasharray="3 3"' if line.is_dotted else ""
    made = [f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'] if len(places) > 1 else []
    if line.is_dotted or len(places) == 1:
        made += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in places]
    return made


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The smallest and the largest of each stretch, in their order: nothing that stands out is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    length = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return kept
