"""The metric over one setting, a dot a trial: the learning-rate curve, and its like for every other setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.report.page import joined
from rayqd.sweep.outcome import Outcome
from rayqd.sweep.report.axis import Axis, metric_axis, setting_axis
from rayqd.sweep.report.marks import Marks, spoken
from rayqd.sweep.trials import short_labels, value_label

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 388, 10, 180


def effect(key: str, sweep: SweepConfig, marks: Marks, metric_title: str) -> Markup:
    """Trials that differ in this setting alone are joined by a line."""
    labels = short_labels(list(sweep.over))
    across = setting_axis(labels[key], sweep.over[key])
    up = metric_axis(metric_title, [marks.value(outcome) for outcome in marks.outcomes])
    lines = [_line(group, key, across, up, marks) for group in _alike(key, sweep, marks.outcomes)]
    dots = [_dot(outcome, key, across, up, marks) for outcome in marks.outcomes]
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH,
        _HEIGHT,
        f"{metric_title} over {key}; the same numbers are in the table",
        joined([grid(up, _LEFT, _RIGHT, _TOP, _BOTTOM), *_marks_below(across), *lines, *dots]),
    )
    lists = [name for name in sweep.over if name != key]
    joined_by = f"lines join trials of the same {' and '.join(labels[name] for name in lists)}" if any(lines) else ""
    return Markup(
        '<figure><figcaption><strong>{}</strong><span class="unit">{}</span>'
        '<span class="legend">{}</span></figcaption>{}</figure>'
    ).format(labels[key], metric_title, joined_by if lists else "", svg)


def grid(up: Axis, left: float, right: float, top: float, bottom: float) -> Markup:
    """Level lines with their numbers."""
    parts: list[Markup] = []
    for share, text in up.ticks:
        y = round(bottom - share * (bottom - top), 1)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, y, y))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 8, y + 3.5, text))
    parts.append(Markup('<line class="base" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, bottom, bottom))
    return joined(parts)


def _marks_below(across: Axis) -> list[Markup]:
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    return [text.format(_x(share), _BOTTOM + 18, name) for share, name in across.ticks]


def _alike(key: str, sweep: SweepConfig, outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Trials by their other settings, each group by its own; without ranges, of which no two trials share a value."""
    if any(isinstance(dimension, Span) for name, dimension in sweep.over.items() if name != key):
        return []
    groups: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        others = tuple(value_label(value) for name, value in outcome.trial.settings.items() if name != key)
        groups[others].append(outcome)
    return [group for group in groups.values() if len(group) > 1]


def _line(group: Sequence[Outcome], key: str, across: Axis, up: Axis, marks: Marks) -> Markup:
    points = sorted(_point(outcome, key, across, up, marks) for outcome in group)
    best = max(group, key=lambda outcome: marks.shares[outcome.trial.number])
    return Markup('<path {} d="M{}"/>').format(
        marks.attributes(best, "trial", "joining"), "L".join(f"{x:g} {y:g}" for x, y in points)
    )


def _dot(outcome: Outcome, key: str, across: Axis, up: Axis, marks: Marks) -> Markup:
    x, y = _point(outcome, key, across, up, marks)
    return Markup('<circle {} cx="{}" cy="{}" r="4"><title>{}</title></circle>').format(
        marks.attributes(outcome, "dot"), x, y, spoken(outcome)
    )


def _point(outcome: Outcome, key: str, across: Axis, up: Axis, marks: Marks) -> tuple[float, float]:
    value: Any = outcome.trial.settings[key]
    return _x(across.at(value)), round(_BOTTOM - up.at(marks.value(outcome)) * (_BOTTOM - _TOP), 1)


def _x(share: float) -> float:
    return round(_LEFT + 12 + share * (_RIGHT - _LEFT - 24), 1)
