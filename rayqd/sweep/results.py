"""What a sweep leaves: `result.json`, `best.toml`, and the table on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rayqd.config import to_toml
from rayqd.console.progress import duration
from rayqd.console.result_table import short_path
from rayqd.console.say import say
from rayqd.sweep.study import Study
from rayqd.sweep.trials import Outcome, find_best, short_labels, sort_by_metric, value_label


def result_of(study: Study, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The trials, the best first, and what the teacher cost."""
    metric = study.sweep.metric
    best = find_best(outcomes, metric)
    return {
        "name": study.base.name,
        "metric": metric,
        "best": best.trial.name if best else None,
        "num_trials": study.num_trials,
        "num_steps": study.base.learner.steps,
        "trials": [_row(outcome) for outcome in sort_by_metric(outcomes, metric)],
        "teacher": teacher_cost(outcomes),
        "seconds": {"trials": round(sum(outcome.seconds.get("total", 0.0) for outcome in outcomes), 1)},
    }


def teacher_cost(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Seconds of loading and scoring over all trials, and how many scores were found and how many made."""
    return {
        "seconds": round(sum(outcome.teacher_seconds for outcome in outcomes), 1),
        "cache_hits": sum(outcome.cache["hits"] for outcome in outcomes),
        "cache_misses": sum(outcome.cache["misses"] for outcome in outcomes),
    }


def best_toml(study: Study, best: Outcome) -> str:
    """The best trial's configuration, for `rayqd distill`, under a name of its own."""
    run = study.run(best.trial)
    kl = f"KL to teacher {best.last.kl_to_teacher:.4f}" if best.last else ""
    head = f"# The best of {study.base.name}: trial {best.trial.name}, {kl} at step {best.step} of {run.learner.steps}."
    return f"{head}\n\n{to_toml(run.model_copy(update={'name': f'{study.base.name}-best'}))}"


def print_outcomes(console: Console, study: Study, outcomes: Sequence[Outcome], path: Path) -> None:
    """The table, why trials failed, and where everything lies."""
    console.print()
    console.print(_table(study, outcomes))
    lines = [f"{outcome.trial.name} failed: {outcome.error}" for outcome in outcomes if outcome.state == "failed"]
    teacher = teacher_cost(outcomes)
    num_scores = teacher["cache_hits"] + teacher["cache_misses"]
    kept = f"; {teacher['cache_hits']:,} of {num_scores:,} scores were there already" if num_scores else ""
    lines.append(f"teacher   {teacher['seconds']:,.0f} s, loading included{kept}")
    best = find_best(outcomes, study.sweep.metric)
    if best:
        lines.append(f"best      {best.trial.name}: rayqd distill @{short_path(path / 'best.toml')}")
    lines += [f"report    {short_path(path / 'report.html')}", f"result    {short_path(path / 'result.json')}"]
    for line in lines:
        say(console, line)


def _row(outcome: Outcome) -> dict[str, Any]:
    row = {
        "number": outcome.trial.number,
        "name": outcome.trial.name,
        "settings": dict(outcome.trial.settings),
        "state": outcome.state,
        "step": outcome.step,
        "kl_to_teacher": outcome.last.kl_to_teacher if outcome.last else None,
        "perplexity": outcome.last.perplexity if outcome.last else None,
        "seconds": dict(outcome.seconds),
        "teacher_seconds": round(outcome.teacher_seconds, 1),
    }
    return row | ({"error": outcome.error} if outcome.error else {})


def _table(study: Study, outcomes: Sequence[Outcome]) -> Table:
    labels = short_labels(list(study.sweep.over))
    table = Table(title=f"{study.base.name}: {len(outcomes)} trials, the best first", title_justify="left")
    for heading in ("", *labels.values(), "KL to teacher", "perplexity", "steps", "time", "state"):
        table.add_column(heading, justify="left" if heading == "state" else "right", no_wrap=True)
    for outcome in sort_by_metric(outcomes, study.sweep.metric):
        table.add_row(
            f"{outcome.trial.number:03d}",
            *(value_label(outcome.trial.settings[key]) for key in labels),
            f"{outcome.last.kl_to_teacher:.4f}" if outcome.last else "",
            f"{outcome.last.perplexity:.3f}" if outcome.last else "",
            str(outcome.step),
            duration(outcome.seconds["total"]) if "total" in outcome.seconds else "",
            outcome.state,
        )
    return table
