"""A heat map: the best that was found for every pair of values of two settings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from rayqd.config.sections.sweep import Span
from rayqd.report.page import joined
from rayqd.sweep.outcome import Outcome
from rayqd.sweep.report.marks import Marks, goodness, spoken
from rayqd.sweep.trials import value_label

_MOST_BINS = 5

Bin = tuple[float, float]


def heat_map(
    down: str, across: str, dimensions: Sequence[Sequence[Any] | Span], titles: Sequence[str], marks: Marks
) -> Markup:
    """`down` and `across` are settings, `dimensions` and `titles` theirs; a range is cut into equal parts."""
    rows, columns = (_bins(dimension) for dimension in dimensions)
    cells: dict[tuple[int, int], Outcome] = {}
    for outcome in sorted(marks.outcomes, key=marks.value, reverse=True):
        place = _bin(rows, outcome.trial.settings[down]), _bin(columns, outcome.trial.settings[across])
        cells[place] = outcome
    shares = goodness({i: marks.value(outcome) for i, outcome in enumerate(cells.values())})
    by_cell = {place: shares[i] for i, place in enumerate(cells)}
    head = joined(Markup("<th>{}</th>").format(_label(column)) for column in columns)
    lines = [
        Markup("<tr><th>{}</th>{}</tr>").format(
            _label(row), joined(_cell(cells.get((i, j)), by_cell.get((i, j), 0.0), marks) for j in range(len(columns)))
        )
        for i, row in enumerate(rows)
    ]
    return Markup(
        '<div class="wide"><table class="heat"><thead><tr><th class="corner">{} ↓ &nbsp;{} →</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(*titles, head, joined(lines))


def _cell(outcome: Outcome | None, share: float, marks: Marks) -> Markup:
    if outcome is None:
        return Markup('<td class="none">–</td>')
    strong = " strong" if share > 0.55 else ""
    early = " early" if outcome.state != "finished" else ""
    best = " best" if outcome.trial.number == marks.best else ""
    return Markup('<td class="cell{}{}{}" data-trial="{}" style="--share:{}%" title="{}">{}</td>').format(
        strong, early, best, outcome.trial.number, round(100 * share), spoken(outcome), f"{marks.value(outcome):.4f}"
    )


def _bins(dimension: Sequence[Any] | Span) -> list[Any]:
    """The values of a list by size, or parts of a range."""
    if isinstance(dimension, Span):
        low, high = float(dimension.low), float(dimension.high)
        if dimension.log:
            edges = [low * (high / low) ** (i / _MOST_BINS) for i in range(_MOST_BINS + 1)]
        else:
            edges = [low + (high - low) * i / _MOST_BINS for i in range(_MOST_BINS + 1)]
        return [(float(f"{a:.2g}"), float(f"{b:.2g}")) for a, b in pairwise(edges)]
    numbers = all(isinstance(value, int | float) for value in dimension)
    return sorted(dimension) if numbers else list(dimension)


def _bin(bins: Sequence[Any], value: Any) -> int:
    if bins and isinstance(bins[0], tuple):
        return next((i for i, (_, high) in enumerate(bins) if value < high), len(bins) - 1)
    return bins.index(value)


def _label(place: Any) -> str:
    return f"{value_label(place[0])} to {value_label(place[1])}" if isinstance(place, tuple) else value_label(place)
