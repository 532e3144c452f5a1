"""Parallel coordinates: an axis a setting and one for the metric, a line a trial."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from rayqd.config.sections.sweep import SweepConfig
from rayqd.report.page import joined
from rayqd.sweep.report.axis import Axis, metric_axis, setting_axis
from rayqd.sweep.report.marks import Marks, spoken
from rayqd.sweep.trials import short_labels

_WIDTH, _HEIGHT = 1000, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 930, 44, 280


def parallel_coordinates(sweep: SweepConfig, marks: Marks, metric_title: str) -> Markup:
    labels = short_labels(list(sweep.over))
    axes = [setting_axis(labels[key], dimension) for key, dimension in sweep.over.items()]
    axes.append(metric_axis(metric_title, [marks.value(outcome) for outcome in marks.outcomes]))
    places = [_LEFT + i * (_RIGHT - _LEFT) / (len(axes) - 1) for i in range(len(axes))]
    lines: list[Markup] = []
    for outcome in sorted(marks.outcomes, key=lambda outcome: marks.shares[outcome.trial.number]):
        values = [*(outcome.trial.settings[key] for key in sweep.over), marks.value(outcome)]
        points = [(x, _y(axis.at(value))) for x, axis, value in zip(places, axes, values, strict=True)]
        lines.append(
            Markup('<path {} d="{}"><title>{}</title></path>').format(
                marks.attributes(outcome, "trial"), _smooth(points), spoken(outcome)
            )
        )
    drawn = joined([*lines, *(_axis(axis, x, last=x == places[-1]) for axis, x in zip(axes, places, strict=True))])
    return Markup(
        '<div class="scroll"><svg class="chart parallel" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></div>'
    ).format(_WIDTH, _HEIGHT, "Every trial's settings and what came of them; the same numbers are in the table", drawn)


def _axis(axis: Axis, x: float, *, last: bool) -> Markup:
    parts = [
        Markup('<line class="axis" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, _TOP, _BOTTOM),
        Markup('<text class="title" x="{}" y="{}" text-anchor="middle">{}</text>').format(x, _TOP - 22, axis.title),
    ]
    beside, anchor = (8, "start") if last else (-8, "end")
    for share, text in axis.ticks:
        y = _y(share)
        parts.append(Markup('<line class="tick" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x - 3, x + 3, y, y))
        parts.append(
            Markup('<text class="halo" x="{}" y="{}" text-anchor="{}">{}</text>').format(
                x + beside, y + 3.5, anchor, text
            )
        )
    return joined(parts)


def _y(share: float) -> float:
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)


def _smooth(points: Sequence[tuple[float, float]]) -> str:
    """Level where it crosses an axis, so that lines that meet there can be told apart."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2
        path += f"C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"
    return path
