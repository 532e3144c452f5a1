"""The table of trials on a sweep's page."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from rayqd.config.sections.sweep import SweepConfig
from rayqd.console.progress import duration
from rayqd.report import page
from rayqd.report.page import joined
from rayqd.sweep.outcome import Outcome, by_metric
from rayqd.sweep.report.marks import Marks
from rayqd.sweep.trials import short_labels, value_label


def trials_table(outcomes: Sequence[Outcome], sweep: SweepConfig, marks: Marks, num_steps: int) -> Markup:
    """A row a trial, the best first; its number leads to its own page."""
    labels = short_labels(list(sweep.over))
    titles = ["", *labels.values(), "KL to teacher", "", "perplexity", "steps", "time", ""]
    head = joined(Markup('<th class="{}">{}</th>').format("number" if title else "", title) for title in titles)
    widest = max((outcome.kl_to_teacher or 0.0 for outcome in marks.outcomes), default=0.0) or 1.0
    rows = [_row(outcome, list(labels), marks, widest, num_steps) for outcome in by_metric(outcomes, sweep.metric)]
    return Markup(
        '<div class="wide"><table class="trials"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(head, joined(rows, "\n"))


def failures(outcomes: Sequence[Outcome]) -> list[Markup]:
    """Why trials failed."""
    return [
        page.details(f"Why {outcome.trial.name} failed", page.code(outcome.error or ""))
        for outcome in outcomes
        if outcome.state == "failed"
    ]


def _row(outcome: Outcome, keys: Sequence[str], marks: Marks, widest: float, num_steps: int) -> Markup:
    trial = outcome.trial
    link = Markup('<a href="{}/report.html">{:03d}</a>').format(trial.name, trial.number)
    cells = [Markup("<td>{}</td>").format(link)]
    cells += [Markup('<td class="number">{}</td>').format(value_label(trial.settings[key])) for key in keys]
    if outcome.kl_to_teacher is None:
        cells += [Markup("<td></td>")] * 3
    else:
        bar = f"{100 * outcome.kl_to_teacher / widest:.1f}"
        cells += [
            Markup('<td class="number">{:.4f}</td>').format(outcome.kl_to_teacher),
            Markup('<td><span class="share" aria-hidden="true"><span style="width:{}%"></span></span></td>').format(
                bar
            ),
            Markup('<td class="number">{:.3f}</td>').format(outcome.perplexity),
        ]
    cells.append(Markup('<td class="number">{:,}/{:,}</td>').format(outcome.step, num_steps))
    time = duration(outcome.seconds["total"]) if "total" in outcome.seconds else ""
    cells.append(Markup('<td class="number">{}</td><td class="state">{}</td>').format(time, outcome.state))
    if trial.number in marks.shares:
        return Markup("<tr {}>{}</tr>").format(marks.attributes(outcome), joined(cells))
    return Markup("<tr>{}</tr>").format(joined(cells))
