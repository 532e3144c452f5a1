"""A sweep's tables: every trial in a row, and a heat map of two settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.console.progress import duration
from rayqd.report import page
from rayqd.report.page import joined
from rayqd.sweep.report.marks import Marks, describe_trial, scale_strength
from rayqd.sweep.trials import Outcome, short_labels, sort_by_metric, value_label

_NUM_BINS = 5  # of a range, in a heat map


def draw_trials(outcomes: Sequence[Outcome], sweep: SweepConfig, marks: Marks, num_steps: int) -> Markup:
    """Return a table with a row a trial, the best first; its number leads to its own page."""
    labels = short_labels(list(sweep.over))
    titles = ["", *labels.values(), "KL to teacher", "", "perplexity", "steps", "time", ""]
    head = joined(Markup('<th class="{}">{}</th>').format("number" if title else "", title) for title in titles)
    widest = max((outcome.last.kl_to_teacher for outcome in outcomes if outcome.last), default=0.0) or 1.0
    rows = [_row(outcome, list(labels), marks, widest, num_steps) for outcome in sort_by_metric(outcomes, sweep.metric)]
    return Markup(
        '<div class="wide"><table class="trials"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, joined(rows, "\n"))


def fold_errors(outcomes: Sequence[Outcome]) -> list[Markup]:
    """Return why trials failed, folded until somebody asks for it."""
    return [
        page.details(f"Why {outcome.trial.name} failed", page.code(outcome.error or ""))
        for outcome in outcomes
        if outcome.state == "failed"
    ]


def draw_heat_map(down: str, across: str, titles: Sequence[str], sweep: SweepConfig, marks: Marks) -> Markup:
    """Return a table of the best value at each pair of values of the settings `down` and `across`."""
    rows, columns = (_bins(sweep.over[key]) for key in (down, across))
    cells: dict[tuple[int, int], Outcome] = {}
    for outcome in sorted(marks.outcomes, key=marks.value, reverse=True):
        settings = outcome.trial.settings
        cells[_bin_of(settings[down], rows), _bin_of(settings[across], columns)] = outcome
    strength = scale_strength({cell: marks.value(outcome) for cell, outcome in cells.items()})
    head = joined(Markup("<th>{}</th>").format(column.label) for column in columns)
    lines = [
        Markup("<tr><th>{}</th>{}</tr>").format(
            row.label, joined(_cell(cells.get((i, j)), strength.get((i, j), 0.0), marks) for j in range(len(columns)))
        )
        for i, row in enumerate(rows)
    ]
    return Markup(
        '<div class="wide"><table class="heat"><thead><tr><th class="corner">{} ↓ &nbsp;{} →</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(*titles, head, joined(lines))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bin:
    """A value of a list, or all of a range that is below `below`."""

    label: str
    value: object = None
    below: float | None = None

    def holds(self, value: object) -> bool:
        if self.below is None:
            return value == self.value
        return isinstance(value, int | float) and value < self.below


def _bins(dimension: Sequence[object] | Span) -> list[_Bin]:
    """Return a bin a value of a list, numbers by size, or equal parts of a range."""
    if not isinstance(dimension, Span):
        numbers = sorted(value for value in dimension if isinstance(value, int | float))
        values = numbers if len(numbers) == len(dimension) else dimension
        return [_Bin(label=value_label(value), value=value) for value in values]
    low, high = float(dimension.low), float(dimension.high)
    shares = [i / _NUM_BINS for i in range(_NUM_BINS + 1)]
    exact = [low * (high / low) ** share if dimension.log else low + (high - low) * share for share in shares]
    edges = [float(f"{edge:.2g}") for edge in exact]
    return [_Bin(label=f"{value_label(a)} to {value_label(b)}", below=b) for a, b in pairwise(edges)]


def _bin_of(value: object, bins: Sequence[_Bin]) -> int:
    return next((i for i, candidate in enumerate(bins) if candidate.holds(value)), len(bins) - 1)


def _cell(outcome: Outcome | None, strength: float, marks: Marks) -> Markup:
    if outcome is None:
        return Markup('<td class="none">–</td>')
    shade = _shade(strength)
    early = " early" if outcome.state != "finished" else ""
    best = " best" if outcome.trial.number == marks.best else ""
    return Markup('<td class="cell{}{}{}" data-trial="{}" style="--share:{}%" title="{}">{}</td>').format(
        shade,
        early,
        best,
        outcome.trial.number,
        round(100 * strength),
        describe_trial(outcome),
        f"{marks.value(outcome):.4f}",
    )


def _shade(strength: float) -> str:
    """Return the class of a cell: on a light page dark text is the better read up to 0.8, on a dark page to 0.65."""
    return " strong medium" if strength > 0.8 else " medium" if strength > 0.65 else ""


def _row(outcome: Outcome, keys: Sequence[str], marks: Marks, widest: float, num_steps: int) -> Markup:
    trial = outcome.trial
    number = Markup('<td class="number">{}</td>')
    cells = [Markup('<td><a href="{}/report.html">{:03d}</a></td>').format(trial.name, trial.number)]
    cells += [number.format(value_label(trial.settings[key])) for key in keys]
    cells += _measured_cells(outcome, widest)
    cells.append(number.format(f"{outcome.step:,}/{num_steps:,}"))
    cells.append(number.format(duration(outcome.seconds["total"]) if "total" in outcome.seconds else ""))
    cells.append(Markup('<td class="state">{}</td>').format(outcome.state))
    attributes = Markup(" ") + marks.attributes(outcome) if outcome.last else ""
    return Markup("<tr{}>{}</tr>").format(attributes, joined(cells))


def _measured_cells(outcome: Outcome, widest: float) -> list[Markup]:
    """Return KL to teacher as a number and as a bar, and perplexity."""
    if outcome.last is None:
        return [Markup("<td></td>")] * 3
    width = f"{100 * outcome.last.kl_to_teacher / widest:.1f}"
    return [
        Markup('<td class="number">{:.4f}</td>').format(outcome.last.kl_to_teacher),
        Markup('<td><span class="share" aria-hidden="true"><span style="width:{}%"></span></span></td>').format(width),
        Markup('<td class="number">{:.3f}</td>').format(outcome.last.perplexity),
    ]
