"""A sweep's charts: the metric over one setting, over the steps, and over all settings beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.report.axis import Axis
from rayqd.report.chart import Plot, draw_svg
from rayqd.report.page import joined
from rayqd.sweep.halving import Halving
from rayqd.sweep.report.axes import metric_axis, number_axis, position, setting_axis
from rayqd.sweep.report.marks import Marks, describe_trial
from rayqd.sweep.trials import Outcome, short_labels, value_label

_PARALLEL_LEFT, _PARALLEL_RIGHT, _PARALLEL_TOP, _PARALLEL_BOTTOM = 70, 930, 44, 280


def draw_setting(key: str, sweep: SweepConfig, marks: Marks) -> Markup:
    """Draw the metric over a setting, a dot a trial; trials that differ in this setting alone are joined by a line."""
    labels = short_labels(list(sweep.over))
    up = metric_axis(marks.metric_title, [marks.value(outcome) for outcome in marks.outcomes])
    across = setting_axis(labels[key], sweep.over[key])
    plot = Plot(left=50, right=388, top=10, bottom=180, inset=12, across=across, up=up)
    lines = [_joining_line(group, key, plot, marks) for group in _group_alike(key, sweep, marks.outcomes)]
    dots = [_dot(outcome, _point(outcome, key, plot, marks), 4, marks) for outcome in marks.outcomes]
    label = f"{marks.metric_title} over {key}; the same numbers are in the table"
    others = " and ".join(labels[name] for name in sweep.over if name != key)
    return Markup(
        '<figure><figcaption><strong>{}</strong><span class="unit">{}</span>'
        '<span class="legend">{}</span></figcaption>{}</figure>'
    ).format(
        labels[key],
        marks.metric_title,
        f"lines join trials of the same {others}" if lines and others else "",
        draw_svg(400, 210, label, [plot.draw_axes(), *lines, *dots]),
    )


def draw_learning_curves(marks: Marks, num_steps: int, halving: Halving | None) -> Markup:
    """Draw the metric over the steps, a line a trial; where trials were compared, and which of them ended there."""
    outcomes = [outcome for outcome in marks.outcomes if len(outcome.curve) > 1]
    values = [evaluation.metric(marks.metric) for outcome in outcomes for evaluation in outcome.curve]
    if not values:
        return Markup("")
    across = number_axis("step", 0.0, float(num_steps), log=False)
    plot = Plot(left=60, right=985, top=26, bottom=300, across=across, up=metric_axis(marks.metric_title, values))
    curves = [_learning_curve(outcome, plot, marks) for outcome in marks.weakest_first(outcomes)]
    parts = [plot.draw_axes(), *(_rungs(plot, halving) if halving else []), *curves]
    return _scrollable(draw_svg(1000, 330, f"{marks.metric_title} of every trial over its steps", parts, "curves"))


def draw_parallel_coordinates(sweep: SweepConfig, marks: Marks) -> Markup:
    """Draw an axis a setting and one for the metric, a line a trial."""
    labels = short_labels(list(sweep.over))
    axes = [setting_axis(labels[key], dimension) for key, dimension in sweep.over.items()]
    axes.append(metric_axis(marks.metric_title, [marks.value(outcome) for outcome in marks.outcomes]))
    gap = (_PARALLEL_RIGHT - _PARALLEL_LEFT) / (len(axes) - 1)
    columns = [(_PARALLEL_LEFT + i * gap, axis) for i, axis in enumerate(axes)]
    lines: list[Markup] = []
    for outcome in marks.weakest_first(marks.outcomes):
        values = [*(outcome.trial.settings[key] for key in sweep.over), marks.value(outcome)]
        points = [(x, _parallel_y(position(axis, value))) for (x, axis), value in zip(columns, values, strict=True)]
        lines.append(_trial_path(outcome, _smooth_path(points), marks))
    drawn = [_vertical_axis(axis, x, last=axis is axes[-1]) for x, axis in columns]
    label = "Every trial's settings and what came of them; the same numbers are in the table"
    return _scrollable(draw_svg(1000, 300, label, [*lines, *drawn], "parallel"))


def _group_alike(key: str, sweep: SweepConfig, outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Group trials that differ in `key` alone; none where a range is swept, of which no two trials share a value."""
    if any(isinstance(dimension, Span) for name, dimension in sweep.over.items() if name != key):
        return []
    groups: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        others = tuple(value_label(value) for name, value in outcome.trial.settings.items() if name != key)
        groups[others].append(outcome)
    return [group for group in groups.values() if len(group) > 1]


def _joining_line(group: Sequence[Outcome], key: str, plot: Plot, marks: Marks) -> Markup:
    points = sorted(_point(outcome, key, plot, marks) for outcome in group)
    best = max(group, key=lambda outcome: marks.strength[outcome.trial.number])
    return Markup('<path {} d="M{}"/>').format(
        marks.attributes(best, "trial", "joining"), "L".join(f"{x:g} {y:g}" for x, y in points)
    )


def _point(outcome: Outcome, key: str, plot: Plot, marks: Marks) -> tuple[float, float]:
    return plot.x_at(position(plot.across, outcome.trial.settings[key])), plot.y(marks.value(outcome))


def _learning_curve(outcome: Outcome, plot: Plot, marks: Marks) -> Markup:
    points = [(evaluation.step, evaluation.metric(marks.metric)) for evaluation in outcome.curve]
    step, value = points[-1]
    end = Markup('<circle {} cx="{}" cy="{}" r="3.5"/>').format(
        marks.attributes(outcome, "dot"), plot.x(step), plot.y(value)
    )
    return _trial_path(outcome, plot.path(points), marks) + end


def _rungs(plot: Plot, halving: Halving) -> list[Markup]:
    """Mark the steps at which asha compares trials."""
    line = Markup('<line class="rung" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>')
    text = Markup('<text x="{}" y="{}" text-anchor="middle">best 1 in {} go on</text>')
    xs = [plot.x(step) for step in halving.rungs]
    return [line.format(x, plot.top, plot.bottom) + text.format(x, plot.top - 9, halving.reduction_factor) for x in xs]


def _trial_path(outcome: Outcome, path: str, marks: Marks) -> Markup:
    return Markup('<path {} d="{}"><title>{}</title></path>').format(
        marks.attributes(outcome, "trial"), path, describe_trial(outcome)
    )


def _dot(outcome: Outcome, point: tuple[float, float], radius: float, marks: Marks) -> Markup:
    return Markup('<circle {} cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
        marks.attributes(outcome, "dot"), *point, radius, describe_trial(outcome)
    )


def _vertical_axis(axis: Axis, x: float, *, last: bool) -> Markup:
    top, bottom = _PARALLEL_TOP, _PARALLEL_BOTTOM
    tick = Markup('<line class="tick" x1="{}" x2="{}" y1="{}" y2="{}"/>')
    text = Markup('<text class="halo" x="{}" y="{}" text-anchor="{}">{}</text>')
    parts = [
        Markup('<line class="axis" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, top, bottom),
        Markup('<text class="title" x="{}" y="{}" text-anchor="middle">{}</text>').format(x, top - 22, axis.title),
    ]
    beside, anchor = (8, "start") if last else (-8, "end")
    for share, label in axis.ticks:
        y = _parallel_y(share)
        parts += [tick.format(x - 3, x + 3, y, y), text.format(x + beside, y + 3.5, anchor, label)]
    return joined(parts)


def _parallel_y(share: float) -> float:
    return round(_PARALLEL_BOTTOM - share * (_PARALLEL_BOTTOM - _PARALLEL_TOP), 1)


def _smooth_path(points: Sequence[tuple[float, float]]) -> str:
    """Return a path that is level where it crosses an axis, so that lines that meet there can be told apart."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (x0 + x1) / 2
        path += f"C{middle:g} {y0:g} {middle:g} {y1:g} {x1:g} {y1:g}"
    return path


def _scrollable(svg: Markup) -> Markup:
    return Markup('<div class="scroll">{}</div>').format(svg)
