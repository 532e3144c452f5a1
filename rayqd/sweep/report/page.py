"""report.html of a sweep, made from what lies in its directory."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from rayqd.config import to_toml
from rayqd.config.sections.sweep import Span
from rayqd.config.sweep import sweep_toml
from rayqd.console.progress import duration
from rayqd.console.result_table import short_path
from rayqd.files import write_text
from rayqd.report import page
from rayqd.report.chart import arrange_charts
from rayqd.report.page import Figure
from rayqd.runs.environment import collect_environment
from rayqd.sweep.report.charts import draw_learning_curves, draw_parallel_coordinates, draw_setting
from rayqd.sweep.report.marks import Marks
from rayqd.sweep.report.tables import draw_heat_map, draw_trials, fold_errors
from rayqd.sweep.results import SweepResult, format_best_toml
from rayqd.sweep.study import Study
from rayqd.sweep.trials import Outcome, short_labels, value_label

_TITLES = {"kl_to_teacher": "KL to teacher", "perplexity": "perplexity"}
_MAX_SHORT_TABLE = 16  # rows; the charts come before a longer one
_LAMBDA, _BETA, _RATE = "distill.lmbda", "distill.beta", "learner.lr"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """All that the page is made from."""

    result: SweepResult
    directory: Path
    made: datetime.datetime

    @property
    def study(self) -> Study:
        """Return the sweep itself."""
        return self.result.study

    @property
    def metric_title(self) -> str:
        """Return what `sweep.metric` is called on the page."""
        return _TITLES[self.study.sweep.metric]


def render_page(report: SweepReport) -> str:
    """Return the text of report.html."""
    outcomes = report.result.outcomes
    marks = Marks.of(outcomes, report.study.sweep.metric, report.metric_title)
    body = [_header(report)]
    if marks.outcomes:
        table, charts = _table(report, marks), _charts(report, marks)
        body += [_figures(report), *([*charts, table] if len(outcomes) > _MAX_SHORT_TABLE else [table, *charts])]
    elif outcomes:
        body.append(_table(report, marks))
    body.append(_commands(report))
    own = files("rayqd.sweep.report")
    return page.page(
        f"{report.study.base.name} · rayqd",
        body,
        f"Made by rayqd {collect_environment().versions.get('rayqd', '')}.",
        styles=own.joinpath("sweep.css").read_text(),
        scripts=own.joinpath("sweep.js").read_text(),
    )


def write_page(result: SweepResult, directory: Path) -> None:
    """Write report.html in `directory`, in place of the one before."""
    made = datetime.datetime.now().astimezone()
    report = SweepReport(result=result, directory=short_path(directory), made=made)
    write_text(directory / "report.html", render_page(report))


def _header(report: SweepReport) -> Markup:
    study, base = report.study, report.study.base
    model = Path(base.model.name).name if base.model.name.startswith("/") else base.model.name
    how = {"grid": "every combination", "random": "drawn at random", "optuna": "chosen by Optuna's TPE"}
    labels = list(short_labels(list(study.sweep.over)).values())
    names = f"{', '.join(labels[:-1])} and {labels[-1]}" if len(labels) > 1 else labels[0]
    halving = study.halving
    stopping = f", stopped early by ASHA after step {_and(halving.rungs)}" if halving else ""
    lead = Markup("<strong>{} trials</strong> of {}, {}{}. {} as {} in groups of {}, {} steps.").format(
        study.num_trials,
        names,
        how[study.sweep.search],
        stopping,
        model,
        base.quant.format.upper(),
        base.quant.group_size,
        f"{base.learner.steps:,}",
    )
    ended = sum(outcome.ended for outcome in report.result.outcomes)
    notice = (
        f"{ended} of {study.num_trials} trials had ended when this was written." if ended < study.num_trials else ""
    )
    return page.header(f"rayqd sweep · {report.made.day} {report.made:%B %Y, %H:%M}", base.name, lead, notice)


def _figures(report: SweepReport) -> Markup:
    best = report.result.best
    cost = report.result.teacher
    counts = Counter(outcome.state for outcome in report.result.outcomes)
    short = [f"{counts[state]} {state}" for state in ("stopped early", "failed") if counts[state]]
    num_payloads = cost.cache_hits + cost.cache_misses
    cached = f", {cost.cache_hits / num_payloads:.0%} of its payloads from the cache" if num_payloads else ""
    cards: list[Figure] = []
    if best is not None and (value := best.metric(report.study.sweep.metric)) is not None:
        cards.append(Figure(title=f"Best {report.metric_title}", value=f"{value:.4f}", beside=_against_start(best)))
        settings = [f"{label} {value_label(best.trial.settings[key])}" for key, label in _labels(report).items()]
        cards.append(Figure(title="Best trial", value=f"{best.trial.number:03d}", beside=", ".join(settings)))
    num_ended = sum(outcome.ended for outcome in report.result.outcomes)
    cards.append(Figure(title="Trials", value=str(num_ended), beside=", ".join(short) or "all to their end"))
    about_cost = f"work for all trials, with its loading{cached}"
    cards.append(Figure(title="Teacher", value=duration(cost.seconds), beside=about_cost))
    return page.figures(cards)


def _against_start(best: Outcome) -> str | Markup:
    """Return how KL changed from before training."""
    start, end = best.curve[0], best.last
    if end is None or start.step > 0 or not start.kl_to_teacher:
        return ""
    change = end.kl_to_teacher / start.kl_to_teacher - 1
    text = Markup('<span class="{}">{} %</span> KL against the untrained {:.4f}')
    percent = f"{100 * change:+.0f}".replace("-", "−")
    return text.format("good" if change < 0 else "bad", percent, start.kl_to_teacher)


def _table(report: SweepReport, marks: Marks) -> Markup:
    note = (
        "Held-out rows, the same for every trial; KL(teacher‖student) in nats a token over the full vocabulary. "
        "A trial that was stopped early has the values of its last evaluation."
    )
    table = draw_trials(report.result.outcomes, report.study.sweep, marks, report.study.base.learner.steps)
    return page.section("Trials", table, *fold_errors(report.result.outcomes), note=note)


def _charts(report: SweepReport, marks: Marks) -> list[Markup]:
    sweep, title = report.study.sweep, report.metric_title
    sections: list[Markup] = []
    if len(marks.outcomes) > 1 and len(sweep.over) > 1:
        note = f"A line is a trial, stronger the lower its {title}. Orange: the best; dashed: stopped early."
        sections.append(page.section("Settings and result", draw_parallel_coordinates(sweep, marks), note=note))
    if _LAMBDA in sweep.over and _BETA in sweep.over:
        heat_map = draw_heat_map(_LAMBDA, _BETA, ("λ", "β"), sweep, marks)
        note = f"The least {title} of the trials at each λ (share that the student writes) and β (divergence)."
        sections.append(page.section("λ × β", heat_map, note=note))
    if len(marks.outcomes) > 1:
        keys = sorted((key for key, d in sweep.over.items() if isinstance(d, Span) or len(d) > 1), key=_rate_first)
        heading = "Learning rate" if keys == [_RATE] else "One setting at a time"
        sections.append(page.section(heading, arrange_charts([draw_setting(key, sweep, marks) for key in keys])))
    if curves := draw_learning_curves(marks, report.study.base.learner.steps, report.study.halving):
        sections.append(page.section(f"{title[0].upper()}{title[1:]} over the steps", curves))
    return sections


def _commands(report: SweepReport) -> Markup:
    parts: list[Markup] = []
    if report.result.best:
        parts.append(page.code(f"rayqd distill @{report.directory / 'best.toml'}"))
        parts.append(page.details("best.toml", page.code(format_best_toml(report.study, report.result.best).rstrip())))
    again = f"rayqd sweep @{report.directory / 'config.toml'} @{report.directory / 'sweep.toml'}"
    parts.append(page.details("The sweep itself", page.code(again), page.code(sweep_toml(report.study.sweep).rstrip())))
    parts.append(page.details("What all trials have in common", page.code(to_toml(report.study.base).rstrip())))
    return page.section("Use the best, make it again", *parts)


def _labels(report: SweepReport) -> dict[str, str]:
    return short_labels(list(report.study.sweep.over))


def _rate_first(key: str) -> bool:
    return key != _RATE


def _and(steps: Sequence[int]) -> str:
    texts = [str(step) for step in steps]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)
