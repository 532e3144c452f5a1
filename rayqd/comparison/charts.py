"""The charts of a comparison: KL over tokens by arm, and quality against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rayqd.comparison.findings import ArmFinding, CurvePoint, Findings, find_curve
from rayqd.report.axis import linear_axis, round_ticks
from rayqd.report.chart import Line, Plot, draw_line_chart, draw_svg
from rayqd.report.page import joined

_COLOURS = 6
_LEVELS_FROM = 5  # colours of arms without training are taken from the end


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """An arm in the plane of price and quality."""

    name: str
    seconds: float  # accelerator-seconds of a seed
    kl: float
    ends: tuple[float, float] | None
    colour: int


def draw_curves(findings: Findings) -> Markup | None:
    """Draw the KL over the tokens trained on, a line an arm; arms without training are levels. None without any."""
    trained = [each for each in findings.arms if each.arm.trains and each.kl]
    lines = [line for i, each in enumerate(trained) if (line := _curve(each, find_curve(each.outcome), i))]
    if not lines:
        return None
    others = [each for each in findings.arms if not each.arm.trains and each.kl and math.isfinite(each.kl.value)]
    for i, each in enumerate(others):
        assert each.kl is not None
        colour = (_LEVELS_FROM - i) % _COLOURS
        lines.append(Line(name=each.arm.name, points=[(0, each.kl.value)], colour=colour, level=True))
    return draw_line_chart(
        "KL to teacher over tokens", lines, unit="nats a token; tokens trained on", form=".4f", across="tokens"
    )


def draw_pareto(findings: Findings) -> Markup | None:
    """Draw the KL over accelerator-seconds, a dot an arm, and join those that none beats in both. None for one arm."""
    marks = _marks(findings)
    if len(marks) < 2:
        return None
    ends = [end for mark in marks for end in (mark.ends or (mark.kl, mark.kl))]
    levels = round_ticks(max(0.0, min(ends)), max(ends), from_zero=True)
    prices = round_ticks(0.0, max(mark.seconds for mark in marks), from_zero=True)
    across = linear_axis(prices[0], prices[-1], prices)
    up = linear_axis(levels[0], levels[-1], levels)
    plot = Plot(left=44, right=390, top=10, bottom=176, across=across, up=up)
    front = pareto([(mark.seconds, mark.kl) for mark in marks])
    line = Markup('<path class="line dashed k5" d="{}"/>').format(plot.path(front)) if len(front) > 1 else Markup("")
    keys = joined(
        Markup('<span class="key k{}">{} {}</span>').format(mark.colour, mark.name, f"{mark.kl:.4f}") for mark in marks
    )
    label = "KL to teacher over accelerator-seconds; the same numbers are in the table"
    svg = draw_svg(400, 200, label, [plot.draw_axes(), line, *(_draw(mark, plot) for mark in marks)])
    return Markup(
        "<figure><figcaption><strong>Quality against cost</strong>"
        '<span class="unit">nats a token; accelerator-seconds of a seed</span>'
        '<span class="legend">{}</span></figcaption>{}</figure>'
    ).format(keys, svg)


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one undercuts in cost and in KL, by cost."""
    front: list[tuple[float, float]] = []
    for cost, kl in sorted(points):
        if not front or kl < front[-1][1]:
            front.append((cost, kl))
    return front


def _curve(finding: ArmFinding, curve: Sequence[CurvePoint], number: int) -> Line | None:
    curve = [point for point in curve if math.isfinite(point.kl.value)]
    if not curve:
        return None
    between = [(point.tokens, *ends) for point in curve if (ends := point.kl.interval())]
    points = [(point.tokens, point.kl.value) for point in curve]
    return Line(name=finding.arm.name, points=points, colour=number % _COLOURS, between=between)


def _marks(findings: Findings) -> list[_Mark]:
    marks: list[_Mark] = []
    num_trained = num_others = 0
    for each in findings.arms:
        if each.kl is None or each.cost is None or not math.isfinite(each.kl.value):
            continue
        if each.arm.trains:
            colour, num_trained = num_trained % _COLOURS, num_trained + 1
        else:
            colour, num_others = (_LEVELS_FROM - num_others) % _COLOURS, num_others + 1
        seconds = each.cost.accelerator_seconds / max(1, each.num_seeds)
        marks.append(
            _Mark(name=each.arm.name, seconds=seconds, kl=each.kl.value, ends=each.kl.interval(), colour=colour)
        )
    return marks


def _draw(mark: _Mark, plot: Plot) -> Markup:
    x, y = plot.x(mark.seconds), plot.y(mark.kl)
    parts = [Markup("")]
    if mark.ends:
        low, high = (plot.y(max(plot.up.low, min(plot.up.high, end))) for end in mark.ends)
        path = f"M{x - 3:g} {low}h6M{x:g} {low}V{high}M{x - 3:g} {high}h6"
        parts.append(Markup('<path class="whisker k{}" d="{}"/>').format(mark.colour, path))
    parts.append(
        Markup('<circle class="k{}" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
            mark.colour, x, y, f"{mark.name}: {mark.kl:.4f} nats, {mark.seconds:,.0f} accelerator-seconds"
        )
    )
    return joined(parts)
