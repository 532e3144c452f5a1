"""Charts as static SVG: colours and type come from the page, so that one drawing serves light and dark."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rayqd.report.axis import Axis, interpolate, linear_axis, round_ticks
from rayqd.report.page import EMPTY, joined

Point = tuple[float, float]

_WIDTH, _HEIGHT = 400, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 390, 10, 176  # the edges of the plot
_MAX_DRAWN = 240  # points; a step narrower than that is not to be seen
_MAX_READ = 500  # points that the pointer can read
_MOST_ABOVE = 1.0  # heights of the curves, that a level may lie above them; what is higher stands in the legend alone
_MIN_SMOOTHED = 60  # points from which on a curve is drawn smoothed, over the raw one


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A rectangle in a drawing, edges in the drawing's units, with an axis along its bottom and one along its left."""

    left: float
    right: float
    top: float
    bottom: float
    across: Axis
    up: Axis
    inset: float = 0.0  # between the left and right edges and the ends of `across`

    def x(self, value: float | str) -> float:
        """Return where a value of `across` lies."""
        return self.x_at(self.across.position(value))

    def y(self, value: float) -> float:
        """Return where a value of `up` lies."""
        return self.y_at(self.up.position(value))

    def draw_axes(self) -> Markup:
        """Draw a level line at each tick of `up`, a base line, and the ticks' texts."""
        line = Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        text = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
        parts: list[Markup] = []
        for position, label in self.up.ticks:
            y = self.y_at(position)
            if position > 0:
                parts.append(line.format("grid", self.left, self.right, y, y))
            parts.append(text.format(self.left - 8, y + 3.5, "end", label))
        parts.append(line.format("base", self.left, self.right, self.bottom, self.bottom))
        parts += [
            text.format(self.x_at(position), self.bottom + 18, "middle", label) for position, label in self.across.ticks
        ]
        return joined(parts)

    def path(self, points: Sequence[Point]) -> str:
        """Return the `d` of a path through `points`."""
        return "M" + "L".join(f"{self.x(x):g} {self.y(y):g}" for x, y in points)

    def x_at(self, position: float) -> float:
        """Return the x in the drawing of `position`, 0 at the left end and 1 at the right one."""
        return round(self.left + self.inset + position * (self.right - self.left - 2 * self.inset), 1)

    def y_at(self, position: float) -> float:
        """Return the y in the drawing of `position`, 0 at the bottom and 1 at the top."""
        return round(self.bottom - position * (self.bottom - self.top), 1)


def draw_svg(width: int, height: int, label: str, parts: Sequence[Markup], kind: str = "") -> Markup:
    """Return a drawing of `width` by `height` units; `label` is what a screen reader says of it."""
    return Markup('<svg class="chart{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f" {kind}" if kind else "", width, height, label, joined(parts)
    )


def arrange_charts(drawn: Sequence[Markup]) -> Markup:
    """Put charts side by side, as many as fit."""
    return Markup('<div class="charts">\n{}\n</div>').format(joined(drawn, "\n"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve, or with a single value a level that others are compared to."""

    name: str
    points: Sequence[Point]  # by x
    colour: int = 0  # of page.css
    level: bool = False  # drawn dashed from edge to edge, at the last point's height
    smoothed: bool = False  # noisy enough that a mean over neighbours says more
    between: Sequence[tuple[float, float, float]] = ()  # x, and the ends of a value's interval there


def draw_line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    form: str = ".4g",
    from_zero: bool = False,
    steps: tuple[float, float] | None = None,
    up_to: float | None = None,
    across: str = "step",
) -> Markup:
    """Draw lines over steps; the legend holds each one's last value, written as `form`, or the one under the pointer.

    `steps` are the edges of the chart; without them, those of the lines. `up_to` is a height that must be on it too, as
    where several charts are to have one scale; `across` is what the numbers along the bottom count.
    """
    lines = [line for line in lines if line.points]
    curves = [line for line in lines if not line.level]
    plot = _plot(lines, curves, from_zero=from_zero, steps=steps, up_to=up_to)
    cursor = Markup('<line class="cursor" x1="0" x2="0" y1="{}" y2="{}"/>').format(_TOP, _BOTTOM)
    values = "; ".join(f"{line.name or title} {line.points[-1][1]:{form}}" for line in lines)
    parts = [plot.draw_axes(), cursor, *(_draw_line(line, plot) for line in lines)]
    svg = draw_svg(_WIDTH, _HEIGHT, f"{title}, last: {values}", parts)
    caption = Markup('<figcaption><strong>{}</strong>{}<span class="legend">{}</span></figcaption>').format(
        title,
        Markup('<span class="unit">{}</span>').format(unit) if unit else EMPTY,
        joined([*(_legend_key(line, form, plot) for line in lines), Markup('<span class="at"></span>')]),
    )
    return Markup('<figure data-lines="{}">{}{}</figure>').format(
        _pointer_data(curves, plot, form, across), caption, svg
    )


def _plot(
    lines: Sequence[Line],
    curves: Sequence[Line],
    *,
    from_zero: bool,
    steps: tuple[float, float] | None,
    up_to: float | None,
) -> Plot:
    xs = [x for line in curves for x, _ in line.points]
    ys = _heights(lines, curves) + ([] if up_to is None else [up_to])
    low, high = steps or ((min(xs), max(xs)) if xs else (0.0, 1.0))
    levels = round_ticks(min(ys, default=0.0), max(ys, default=1.0), from_zero=from_zero)
    up = linear_axis(levels[0], levels[-1], levels)
    return Plot(left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM, across=_step_axis(low, high), up=up)


def _heights(lines: Sequence[Line], curves: Sequence[Line]) -> list[float]:
    """Return what must lie on the chart: the curves, and the levels that do not press them flat."""
    ys = [y for line in curves for _, y in line.points]
    ys += [end for line in curves for _, *ends in line.between for end in ends]
    levels = [line.points[-1][1] for line in lines if line.level]
    if not ys:
        return levels
    most = max(ys) + _MOST_ABOVE * (max(ys) - min(ys) or abs(max(ys)))
    return ys + [level for level in levels if level <= most]


def _step_axis(low: float, high: float) -> Axis:
    """Return an axis with ticks at round whole steps."""
    steps = [low]
    if high > low:
        steps = [x for x in round_ticks(low, high, count=5) if low <= x <= high and x == round(x)]
    return Axis(low=low, high=high, ticks=tuple((interpolate(step, low, high), f"{step:,.0f}") for step in steps))


def _draw_line(line: Line, plot: Plot) -> Markup:
    path = Markup('<path class="{} k{}" d="{}"/>')
    if line.level:
        if line.points[-1][1] > plot.up.high:
            return EMPTY
        y = plot.y(line.points[-1][1])
        return path.format("line dashed", line.colour, f"M{_LEFT} {y}H{_RIGHT}")
    smoothed = line.smoothed and len(line.points) >= _MIN_SMOOTHED
    curve = _thin(_running_mean(line.points, max(2, len(line.points) // 30)) if smoothed else line.points)
    parts = [path.format("raw", line.colour, plot.path(_thin(line.points)))] if smoothed else []
    parts += [_draw_whisker(line, plot, *ends) for ends in line.between]
    parts.append(path.format("line", line.colour, plot.path(curve)))
    x, y = curve[-1]
    parts.append(Markup('<circle class="k{}" cx="{}" cy="{}" r="3.5"/>').format(line.colour, plot.x(x), plot.y(y)))
    return joined(parts)


def _draw_whisker(line: Line, plot: Plot, x: float, low: float, high: float) -> Markup:
    """Draw an interval as an upright line with short ends."""
    across, bottom, top = plot.x(x), plot.y(low), plot.y(high)
    ends = f"M{across - 3:g} {bottom}h6M{across} {bottom}V{top}M{across - 3:g} {top}h6"
    return Markup('<path class="whisker k{}" d="{}"/>').format(line.colour, ends)


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """Return at most _MAX_DRAWN points that keep every peak: the lowest and the highest of each stretch."""
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
    """Average each value with those up to `window` before it."""
    means: list[Point] = []
    total = 0.0
    for i, (x, y) in enumerate(points):
        total += y - (points[i - window][1] if i >= window else 0.0)
        means.append((x, total / min(i + 1, window)))
    return means


def _legend_key(line: Line, form: str, plot: Plot) -> Markup:
    """Return a line's legend; what page.js changes while the pointer is over the chart is an <output>."""
    value = f"{line.points[-1][1]:{form}}"
    above = " ↑" if line.level and line.points[-1][1] > plot.up.high else ""
    shown = f"{value}{above}" if line.level else Markup("<output>{}</output>").format(value)
    name = f"{line.name} " if line.name else ""
    return Markup('<span class="key k{}{}">{}{}</span>').format(
        line.colour, " dashed" if line.level else "", name, shown
    )


def _pointer_data(curves: Sequence[Line], plot: Plot, form: str, across: str) -> str:
    """Return as JSON what page.js needs: where the plot is, and the values as they are written."""
    every = max(1, math.ceil(max((len(line.points) for line in curves), default=0) / _MAX_READ))
    values = [[[x, f"{y:{form}}"] for x, y in [*line.points[:-1:every], line.points[-1]]] for line in curves]
    edges = {"left": _LEFT, "right": _RIGHT, "low": plot.across.low, "high": plot.across.high, "across": across}
    return json.dumps(edges | {"lines": values}, separators=(",", ":"))
