"""Line charts as static SVG: colours and type come from the page, so that one drawing serves light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rayqd.report.page import EMPTY, joined

Point = tuple[float, float]

_WIDTH, _HEIGHT = 400, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 390, 10, 176  # the edges of the plot
_MAX_DRAWN = 240  # points; a step narrower than that is not to be seen
_MAX_READ = 500  # points that the pointer can read
_MIN_SMOOTHED = 60  # points from which on a curve is drawn smoothed, over the raw one


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve, or with a single value a level that others are compared to."""

    name: str
    points: Sequence[Point]  # by x
    colour: int = 0  # 0 to 5
    level: bool = False  # drawn dashed from edge to edge, at the last point's height
    smoothed: bool = False  # noisy enough that a mean over neighbours says more


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    form: str = ".4g",
    from_zero: bool = False,
    steps: tuple[float, float] | None = None,
) -> Markup:
    """Lines over steps; the legend holds each one's last value, written as `form`, or the one under the pointer.

    `steps` are the edges of the chart; without them, those of the lines.
    """
    lines = [line for line in lines if line.points]
    curves = [line for line in lines if not line.level]
    xs = [x for line in curves for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low_x, high_x = steps or ((min(xs), max(xs)) if xs else (0.0, 1.0))
    y_ticks = ticks(min(ys, default=0.0), max(ys, default=1.0), from_zero=from_zero)
    scale = _Scale(low_x, high_x, y_ticks[0], y_ticks[-1])
    drawn = joined([_grid(scale, y_ticks), *(_drawn(line, scale) for line in lines)])
    spoken = "; ".join(f"{line.name or title} {line.points[-1][1]:{form}}" for line in lines)
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, f"{title}, last: {spoken}", drawn
    )
    caption = Markup('<figcaption><strong>{}</strong>{}<span class="legend">{}</span></figcaption>').format(
        title,
        Markup('<span class="unit">{}</span>').format(unit) if unit else EMPTY,
        joined([*(_key(line, form) for line in lines), Markup('<span class="at"></span>')]),
    )
    return Markup('<figure data-lines="{}">{}{}</figure>').format(_readable(curves, scale, form), caption, svg)


def charts(drawn: Sequence[Markup]) -> Markup:
    """Side by side, as many as fit."""
    return Markup('<div class="charts">\n{}\n</div>').format(joined(drawn, "\n"))


def ticks(low: float, high: float, *, from_zero: bool = False, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose low and high, evenly spaced."""
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        around = abs(low) / 2 or 0.5
        low, high = (low, low + 2 * around) if from_zero or low == 0 else (low - around, low + around)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if rough <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """All of them with as many decimals as the finest needs."""
    largest = max(abs(v) for v in values)
    if 0 < largest < 1e-3:
        return [f"{v:.3g}".replace("e-0", "e-") for v in values]
    if largest >= 10_000:
        return [f"{v / 1000:,g}k" for v in values]
    decimals = next((d for d in range(7) if all(abs(round(v, d) - v) < 1e-9 for v in values)), 7)
    return [f"{v:,.{decimals}f}" for v in values]


@dataclass(frozen=True, slots=True)
class _Scale:
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        share = (value - self.low_x) / (self.high_x - self.low_x) if self.high_x > self.low_x else 0.5
        return round(_LEFT + share * (_RIGHT - _LEFT), 1)

    def y(self, value: float) -> float:
        return round(_BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (_BOTTOM - _TOP), 1)


def _grid(scale: _Scale, y_ticks: Sequence[float]) -> Markup:
    line = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    text = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    parts: list[Markup] = []
    for i, (value, shown) in enumerate(zip(y_ticks, tick_texts(y_ticks), strict=True)):
        y = scale.y(value)
        parts += [line.format("grid" if i else "base", _LEFT, _RIGHT, y, y)]
        parts += [text.format(_LEFT - 8, y + 3.5, "end", shown)]
    for value in _step_ticks(scale.low_x, scale.high_x):
        parts.append(text.format(scale.x(value), _BOTTOM + 18, "middle", f"{value:,.0f}"))
    parts.append(line.format("cursor", 0, 0, _TOP, _BOTTOM))
    return joined(parts)


def _step_ticks(low: float, high: float) -> list[float]:
    """Round whole steps within the plot."""
    if high <= low:
        return [low]
    return [x for x in ticks(low, high, count=5) if low <= x <= high and x == round(x)]


def _drawn(line: Line, scale: _Scale) -> Markup:
    path = Markup('<path class="{} k{}" d="{}"/>')
    if line.level:
        y = scale.y(line.points[-1][1])
        return path.format("line dashed", line.colour, f"M{_LEFT} {y}H{_RIGHT}")
    smoothed = line.smoothed and len(line.points) >= _MIN_SMOOTHED
    curve = _thinned(_running_mean(line.points, max(2, len(line.points) // 30)) if smoothed else line.points)
    parts = [path.format("raw", line.colour, _path(_thinned(line.points), scale))] if smoothed else []
    parts.append(path.format("line", line.colour, _path(curve, scale)))
    x, y = curve[-1]
    parts.append(Markup('<circle class="k{}" cx="{}" cy="{}" r="3.5"/>').format(line.colour, scale.x(x), scale.y(y)))
    return joined(parts)


def _path(points: Sequence[Point], scale: _Scale) -> str:
    return "M" + "L".join(f"{scale.x(x):g} {scale.y(y):g}" for x, y in points)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most _MAX_DRAWN points that keep every peak: the lowest and the highest of each stretch."""
    if len(points) <= _MAX_DRAWN:
        return points
    stretch = math.ceil(len(points) / (_MAX_DRAWN // 2))
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        extremes = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(extremes)
    return [*kept, points[-1]] if kept[-1] != points[-1] else kept


def _running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Each value with those up to `window` before it."""
    means: list[Point] = []
    total = 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - window][1] if i >= window else 0.0)
        means.append((x, total / min(i + 1, window)))
    return means


def _key(line: Line, form: str) -> Markup:
    """What page.js changes while the pointer is over the chart is an <output>; a level stays."""
    value = f"{line.points[-1][1]:{form}}"
    shown = value if line.level else Markup("<output>{}</output>").format(value)
    name = f"{line.name} " if line.name else ""
    return Markup('<span class="key k{}{}">{}{}</span>').format(
        line.colour, " dashed" if line.level else "", name, shown
    )


def _readable(curves: Sequence[Line], scale: _Scale, form: str) -> str:
    """What page.js needs: where the plot is, and the values as they are written."""
    every = max(1, math.ceil(max((len(line.points) for line in curves), default=0) / _MAX_READ))
    values = [[[x, f"{y:{form}}"] for x, y in [*line.points[:-1:every], line.points[-1]]] for line in curves]
    edges = {"left": _LEFT, "right": _RIGHT, "low": scale.low_x, "high": scale.high_x}
    return json.dumps(edges | {"lines": values}, separators=(",", ":"))
