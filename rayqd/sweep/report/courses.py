"""The metric over the steps, a line a trial; where trials were compared, and which of them ended there."""

from __future__ import annotations

from markupsafe import Markup

from rayqd.report.page import joined
from rayqd.sweep.halving import Halving
from rayqd.sweep.outcome import Outcome
from rayqd.sweep.report.axis import Axis, metric_axis, number_axis
from rayqd.sweep.report.effect import grid
from rayqd.sweep.report.marks import Marks, spoken

_WIDTH, _HEIGHT = 1000, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 985, 26, 300


def courses(marks: Marks, num_steps: int, halving: Halving | None, metric_title: str) -> Markup:
    known = [outcome for outcome in marks.outcomes if len(outcome.curve) > 1]
    values = [value for outcome in known for _, value in _curve(outcome, marks.metric)]
    if not values:
        return Markup("")
    across = number_axis("step", 0.0, float(num_steps), log=False)
    up = metric_axis(metric_title, values)
    by_share = sorted(known, key=lambda outcome: marks.shares[outcome.trial.number])
    parts = [grid(up, _LEFT, _RIGHT, _TOP, _BOTTOM), *_steps(across), *_rungs(across, halving)]
    parts += [_course(outcome, across, up, marks) for outcome in by_share]
    return Markup(
        '<div class="scroll"><svg class="chart courses" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></div>'
    ).format(_WIDTH, _HEIGHT, f"{metric_title} of every trial over its steps", joined(parts))


def _course(outcome: Outcome, across: Axis, up: Axis, marks: Marks) -> Markup:
    points = [(_x(across.at(step)), _y(up.at(value))) for step, value in _curve(outcome, marks.metric)]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    x, y = points[-1]
    return Markup('<path {} d="{}"><title>{}</title></path><circle {} cx="{}" cy="{}" r="3.5"/>').format(
        marks.attributes(outcome, "trial"), path, spoken(outcome), marks.attributes(outcome, "dot"), x, y
    )


def _curve(outcome: Outcome, metric: str) -> list[tuple[int, float]]:
    return [(step, perplexity if metric == "perplexity" else kl) for step, kl, perplexity in outcome.curve]


def _steps(across: Axis) -> list[Markup]:
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    return [text.format(_x(share), _BOTTOM + 20, name) for share, name in across.ticks]


def _rungs(across: Axis, halving: Halving | None) -> list[Markup]:
    rungs = halving.rungs if halving else []
    line = Markup('<line class="rung" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>')
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    factor = halving.reduction_factor if halving else 0
    drawn: list[Markup] = []
    for step in rungs:
        x = _x(across.at(step))
        drawn += [line.format(x, _TOP, _BOTTOM), text.format(x, _TOP - 9, f"best 1 in {factor} go on")]
    return drawn


def _x(share: float) -> float:
    return round(_LEFT + share * (_RIGHT - _LEFT), 1)


def _y(share: float) -> float:
    return round(_BOTTOM - share * (_BOTTOM - _TOP), 1)
