"""Small charts as inline SVG: they scale, print, and follow the page's light or dark colours.

Colours are CSS classes of the page (``page.STYLE``); every mark that carries a number has a
``<title>``, which browsers show when the pointer rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
# Room at the right of a stage chart for the word at the target's line.
TARGET_ROOM = 66
MAX_POINTS = 300
# Characters of a label left of the frame.
_LABEL_ROOM = 7


@dataclass(frozen=True)
class Line:
    """One curve: x and y values of equal length; ``faint`` draws it thin, behind the others.

    hue: one of the page's colours, by number, to distinguish runs; label: shown at the curve's end on hovering.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    faint: bool = False
    hue: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Bar:
    """One labelled horizontal bar."""

    label: str
    value: float
    text: str


def number(value: float) -> str:
    """A number as a person would write it on an axis: at most three digits after the point."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) < 1e6 else f"{value / 1e6:,.3g} M"
    if abs(value) < 0.001:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.{3 if abs(value) < 0.1 else 2 if abs(value) < 10 else 1}f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round tick values (1, 2 or 5 times a power of ten) inside [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Each as `number` writes it, or with digits that distinguish neighbours; a repetition without room is empty."""
    labels = [number(value) for value in values]
    if len(set(labels)) == len(labels):
        return labels
    step = min(b - a for a, b in pairwise(values))
    exact = [f"{value:,.{max(0, -math.floor(math.log10(step)))}f}" for value in values]
    if max(map(len, exact)) <= _LABEL_ROOM:
        return exact
    return [label if label not in labels[:i] else "" for i, label in enumerate(labels)]


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average with start-up correction, so that the first points are not pulled down."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        out.append(total / norm)
    return out


def _scale(low: float, high: float, start: float, end: float) -> tuple[float, float]:
    """Slope and offset that map [low, high] to [start, end]."""
    slope = (end - start) / ((high - low) or 1.0)
    return slope, start - slope * low


def _thin(line: Line) -> list[tuple[float, float]]:
    step = max(1, math.ceil(len(line.xs) / MAX_POINTS))
    points = list(zip(line.xs, line.ys, strict=True))
    kept = points[::step]
    if kept and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _frame(title: str, body: list[str], height: int = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        + "".join(body)
        + "</svg>"
    )


def _y_axis(low: float, high: float, slope: float, offset: float, right: float = WIDTH - RIGHT) -> list[str]:
    parts = []
    marks = ticks(low, high)
    for tick, label in zip(marks, tick_labels(marks), strict=True):
        y = slope * tick + offset
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 7}" y="{y + 4:.1f}">{label}</text>')
    return parts


def line_chart(title: str, lines: Sequence[Line], x_label: str) -> str:
    """Curves over a common x axis; the y range is that of the values, robust to a few early spikes."""
    xs = [x for line in lines for x in line.xs]
    values = sorted(y for line in lines for y in line.ys)
    # The first steps of training can be far above the rest: they may leave the frame at the top.
    solid = [y for line in lines if not line.faint for y in line.ys] or values
    low, high = min(min(solid), values[0]), max(max(solid), values[int(0.98 * (len(values) - 1))])
    # Equal values differ by rounding once they are averaged: that is not a range to show.
    pad = 0.06 * (high - low) if high - low > 1e-9 * abs(high) else abs(high) * 0.1 or 1.0
    low, high = (max(0.0, low - pad) if low >= 0 else low - pad), high + pad
    x_slope, x_offset = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_slope, y_offset = _scale(low, high, HEIGHT - BOTTOM, TOP)
    body = _y_axis(low, high, y_slope, y_offset)
    marks = ticks(min(xs), max(xs), 4)
    for tick, label in zip(marks, tick_labels(marks), strict=True):
        x = x_slope * tick + x_offset
        body.append(f'<text class="tick middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{label}</text>')
    body.append(f'<text class="tick middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}">{escape(x_label)}</text>')
    for line in sorted(lines, key=lambda line: not line.faint):
        points = " ".join(
            f"{x_slope * x + x_offset:.1f},{max(TOP, y_slope * y + y_offset):.1f}" for x, y in _thin(line)
        )
        body.append(f'<polyline class="curve{" faint" if line.faint else ""}{_hue(line)}" points="{points}"/>')
    for last in [line for line in lines if not line.faint] or lines[-1:]:
        x, y = x_slope * last.xs[-1] + x_offset, max(TOP, y_slope * last.ys[-1] + y_offset)
        hint = _hint((f"{last.label}: " if last.label else "") + number(last.ys[-1]))
        body.append(f'<circle class="dot{_hue(last)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{hint}</circle>')
    return _frame(title, body)


def _hue(line: Line) -> str:
    return "" if line.hue is None else f" hue{line.hue}"


def _hint(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def stage_chart(
    title: str,
    stages: Sequence[str],
    values: Sequence[float],
    intervals: Sequence[tuple[float, float] | None],
    target: float | None,
) -> str:
    """One metric after each stage: dots with confidence bars, the target as a dashed line."""
    seen = [*values, *(bound for interval in intervals if interval for bound in interval)]
    right = WIDTH - (RIGHT if target is None else TARGET_ROOM)
    if target is not None:
        seen.append(target)
    low, high = min(0.0, *seen), (max(seen) or 1.0) * 1.15
    y_slope, y_offset = _scale(low, high, HEIGHT - BOTTOM, TOP)
    body = _y_axis(low, high, y_slope, y_offset, right)
    if target is not None:
        y = y_slope * target + y_offset
        body.append(f'<line class="target" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(f'<text class="tick" x="{right + 6}" y="{y + 4:.1f}">target {number(target)}</text>')
    slot = (right - LEFT) / len(stages)
    centres = [LEFT + slot * (i + 0.5) for i in range(len(stages))]
    path = " ".join(f"{x:.1f},{y_slope * v + y_offset:.1f}" for x, v in zip(centres, values, strict=True))
    body.append(f'<polyline class="curve thin" points="{path}"/>')
    for x, stage, value, interval in zip(centres, stages, values, intervals, strict=True):
        body += _stage_mark(x, stage, value, interval, y_slope, y_offset)
    return _frame(title, body)


def _stage_mark(
    x: float,
    stage: str,
    value: float,
    interval: tuple[float, float] | None,
    slope: float,
    offset: float,
) -> list[str]:
    """Dot, confidence bar, value above them and the stage's name below the axis."""
    y = top = slope * value + offset
    hint, parts = f"{stage}: {number(value)}", []
    if interval:
        top, bottom = (slope * bound + offset for bound in reversed(interval))
        parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        hint += f" ({number(interval[0])} to {number(interval[1])})"
    return [
        *parts,
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{_hint(hint)}</circle>',
        f'<text class="value middle" x="{x:.1f}" y="{min(top, y - 4) - 6:.1f}">{number(value)}</text>',
        f'<text class="tick middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}">{escape(stage)}</text>',
    ]


def bar_chart(bars: Sequence[Bar]) -> str:
    """Horizontal bars as HTML rows (text wraps on a phone, which SVG text would not)."""
    longest = max((bar.value for bar in bars), default=0.0) or 1.0
    rows = "".join(
        f'<div class="bar-row"><div>{escape(bar.label)}</div>'
        f'<div class="bar-track"><div class="bar" style="width:{100 * bar.value / longest:.1f}%"></div></div>'
        f'<div class="bar-value">{escape(bar.text)}</div></div>'
        for bar in bars
    )
    return f'<div class="bars">{rows}</div>'
