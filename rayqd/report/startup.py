"""The start-up table as a timeline: a row a span, before the first step and after the last one."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from rayqd.report import page
from rayqd.report.axis import Axis, linear_axis, round_ticks
from rayqd.report.chart import arrange_charts, draw_svg
from rayqd.report.page import Column
from rayqd.runs.startup import Startup
from rayqd.spans import Span

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 400, 14, 200, 366, 4  # units of the drawing; right of _RIGHT stand the seconds
_COLOURS = {"driver": 5, "controller": 5, "learner": 0, "rollout": 1, "teacher": 2}
_MAX_ROWS = 40  # of a drawing: of a large cluster's roles the longest spans


def startup_section(startup: Startup) -> Markup:
    """Draw what each process did before the first step and after the last; the same as a table is folded away."""
    drawn: list[Markup] = []
    if startup.first_step is not None and startup.last_step is not None:
        drawn.append(draw_timeline("To the first step", startup.before, 0.0, startup.first_step))
        drawn.append(draw_timeline("After the last step", startup.after, startup.last_step, startup.end))
    elif startup.spans:
        drawn.append(draw_timeline("From start to end", startup.spans, 0.0, startup.end))
    return page.section(
        "Start and end",
        arrange_charts([figure for figure in drawn if figure]),
        page.details("The same as a table", _table(startup.spans)),
        note="Seconds since the command was given. What is pale is waiting.",
    )


def draw_timeline(title: str, spans: Sequence[Span], start: float, end: float) -> Markup:
    """Draw a row for each of `spans`, as far as it lies between `start` and `end`; empty without any."""
    shown = _visible(spans, start, end)
    if not shown:
        return page.EMPTY
    seconds = end - start
    axis = linear_axis(0.0, seconds, round_ticks(0.0, seconds, from_zero=True))
    bottom = _TOP + _ROW * len(shown)
    parts = [_grid(axis, bottom), *(_bar(s, i, start, seconds) for i, s in enumerate(shown))]
    label = f"{title}, {seconds:.0f} s: " + "; ".join(f"{s.role} {s.name} {s.seconds:.1f} s" for s in shown)
    caption = Markup('<figcaption><strong>{}</strong><span class="unit">{} s</span></figcaption>').format(
        title, f"{seconds:.0f}"
    )
    return Markup("<figure>{}{}</figure>").format(caption, draw_svg(_WIDTH, bottom + 20, label, parts, "timeline"))


def _visible(spans: Sequence[Span], start: float, end: float) -> list[Span]:
    """Return those of which half a pixel or more can be seen, in order of start; of many the longest."""
    least = (end - start) / (_RIGHT - _LEFT) / 2
    seen = [s for s in spans if min(s.end, end) - max(s.start, start) >= least]
    longest = sorted(seen, key=lambda s: -s.seconds)[:_MAX_ROWS]
    return [s for s in seen if s in longest]


def _grid(axis: Axis, bottom: float) -> Markup:
    line = Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" text-anchor="middle">{}</text>'
    )
    xs = [(_x(position), text) for position, text in axis.ticks]
    return page.joined(line.format(x, x, _TOP, bottom, x, bottom + 14, text) for x, text in xs)


def _bar(span: Span, row: int, start: float, seconds: float) -> Markup:
    y = _TOP + _ROW * row
    left, right = (_x(min(max((at - start) / seconds, 0.0), 1.0)) for at in (span.start, span.end))
    colour = _COLOURS.get(span.role.rpartition("-")[0] or span.role, 3)
    wait = " wait" if span.name.startswith("wait") else ""
    return Markup(
        '<text class="label" x="{}" y="{}" text-anchor="end">{}</text>'
        '<rect class="k{}{}" x="{}" y="{}" width="{:g}" height="{}" rx="1"/><text x="{}" y="{}">{}</text>'
    ).format(
        *(_LEFT - 6, y + 10.5, f"{span.role} · {span.name}"),
        *(colour, wait, left, y + 2, max(round(right - left, 1), 1.0), _ROW - 4),
        *(right + 4, y + 10.5, f"{span.seconds:.1f}"),
    )


def _x(position: float) -> float:
    return round(_LEFT + position * (_RIGHT - _LEFT), 1)


def _table(spans: Sequence[Span]) -> Markup:
    titles = [Column(title="process"), Column(title="what it did")]
    titles += [Column(title=title, kind="number") for title in ("from, s", "to, s", "seconds")]
    rows = [[s.role, s.name, *(f"{value:.1f}" for value in (s.start, s.end, s.seconds))] for s in spans]
    return page.table(titles, rows, tight=True)
