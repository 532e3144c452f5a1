"""A run's events as charts, named and written as the metric table says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from rayqd.events import EvalEvent, RecordedEvent, StepEvent, samples
from rayqd.metrics.catalogue import ROLES, STUDENT, Metric, metric
from rayqd.metrics.fidelity import TaskValue
from rayqd.report.chart import Line, Point, draw_line_chart
from rayqd.runs.verdict import estimate_kl

_COLOUR = {"learner": 0, "rollout": 1, "teacher": 2, STUDENT: 0}
_OF_LEVELS = (5, 4, 3)
_MOST_WHISKERS = 40
_NORMAL_95 = 1.96  # standard errors to either side


def run_charts(events: Sequence[RecordedEvent], num_steps: int) -> list[Markup]:
    """Return the charts that have something to show; none for a run without steps."""
    values = _values(events)
    if not any(isinstance(event, StepEvent) for event in events):
        return []
    drawn = [
        _chart(metric("loss"), values, smoothed=True),
        _of_evaluations(events, values, num_steps),
        _chart(metric("tokens_per_second"), values, from_zero=True, smoothed=True),
        _seconds(values),
        _chart(metric("learning_rate"), values, from_zero=True),
        _chart(metric("grad_norm"), values, from_zero=True, smoothed=True),
    ]
    for name in ("completion_tokens", "cut_completions"):
        if values.get((name, "learner")):
            drawn.append(_chart(metric(name), values, from_zero=True, smoothed=True))
    drawn[2:2] = _of_benchmarks(events, num_steps)
    if any(y for _, y in values["staleness", "learner"]):
        drawn.append(_chart(metric("staleness"), values, from_zero=True, smoothed=True))
    return drawn


Values = Mapping[tuple[str, str], list[Point]]  # by metric, and role or arm


def _values(events: Sequence[RecordedEvent]) -> Values:
    found: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for event in events:
        for sample in samples(event):
            key = sample.metric.name, sample.tags.get("task", sample.tags.get("arm", sample.tags["role"]))
            found[key].append((event.step, sample.value))
    return found


def _chart(shown: Metric, values: Values, *, from_zero: bool = False, smoothed: bool = False) -> Markup:
    several = len(shown.fields) > 1
    lines = [
        Line(name=role if several else "", points=points, colour=_COLOUR[role], smoothed=smoothed)
        for role in shown.fields
        if (points := values.get((shown.name, role)))
    ]
    return draw_line_chart(shown.title, lines, unit=shown.unit, form=shown.form, from_zero=from_zero)


def _of_evaluations(events: Sequence[RecordedEvent], values: Values, num_steps: int) -> Markup:
    """Draw the student from where its training starts, with intervals, beside the arms that are not trained."""
    shown = metric("kl_to_teacher")
    arms = {arm: points for (name, arm), points in values.items() if name == shown.name and arm != STUDENT}
    start = [list(arms.values())[-1][-1]] if arms else []  # training starts from the last of them
    student = [*start, *values.get((shown.name, STUDENT), [])]
    between = [
        (event.step, interval.low, interval.high)
        for event in events
        if isinstance(event, EvalEvent) and event.arm.series == STUDENT
        if (interval := estimate_kl(event.fidelity).interval)
    ]
    shown_ends = between if len(between) <= _MOST_WHISKERS else between[:: -(-len(between) // _MOST_WHISKERS)]
    lines = [Line(name=STUDENT, points=student, colour=_COLOUR[STUDENT], between=shown_ends)]
    for (arm, points), colour in zip(arms.items(), _OF_LEVELS, strict=False):
        lines.append(Line(name=arm, points=points, colour=colour, level=True))
    return draw_line_chart(f"{shown.title}, held out", lines, unit=shown.unit, form=shown.form, steps=(0, num_steps))


def _of_benchmarks(events: Sequence[RecordedEvent], num_steps: int) -> list[Markup]:
    """Draw a chart for each benchmark that was run while training, its metrics with 95 % intervals."""
    found: dict[str, dict[str, list[tuple[int, TaskValue]]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        for each in event.fidelity.tasks if isinstance(event, EvalEvent) else ():
            found[each.task][each.name.partition("/")[2]].append((event.step, each))
    return [
        draw_line_chart(
            f"{task}, {next(iter(metrics.values()))[-1][1].num_documents:,} documents",
            [
                Line(
                    name=name,
                    points=[(step, each.value) for step, each in measured],
                    colour=colour,
                    between=[
                        (step, each.value - _NORMAL_95 * each.stderr, each.value + _NORMAL_95 * each.stderr)
                        for step, each in measured
                        if each.stderr is not None
                    ],
                )
                for colour, (name, measured) in enumerate(metrics.items())
            ],
            form=metric("benchmark").form,
            steps=(0, num_steps),
        )
        for task, metrics in found.items()
    ]


def _seconds(values: Values) -> Markup:
    """Of a step: what each role worked, and what the learner waited."""
    work, wait = metric("work_seconds"), metric("wait_seconds")
    shown = [(role, values.get((work.name, role), []), _COLOUR[role]) for role in ROLES]
    shown.append(("learner waits", values.get((wait.name, "learner"), []), 5))
    lines = [
        Line(name=name, points=points, colour=colour, smoothed=True)
        for name, points, colour in shown
        if any(y for _, y in points)  # a role may have nothing to do
    ]
    return draw_line_chart("Seconds a step", lines, unit=work.unit, form=work.form, from_zero=True)
