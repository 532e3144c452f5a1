"""What a sweep leaves: `result.json`, `best.toml`, and the table on the screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from rayqd.config import to_toml
from rayqd.console.progress import duration
from rayqd.console.result_table import short_path
from rayqd.console.say import say
from rayqd.console.tables import Column, print_table
from rayqd.sweep.study import Study
from rayqd.sweep.trials import Outcome, find_best, short_labels, sort_by_metric, value_label


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCost:
    """What the teachers cost over all trials."""

    seconds: float  # of loading and scoring
    cache_hits: int  # payloads that were there already
    cache_misses: int  # payloads that were made

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> TeacherCost:
        """Sum over trials."""
        return cls(
            seconds=round(sum(outcome.teacher_seconds for outcome in outcomes), 1),
            cache_hits=sum(outcome.cache_hits for outcome in outcomes),
            cache_misses=sum(outcome.cache_misses for outcome in outcomes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepResult:
    """All that a sweep came to."""

    study: Study
    outcomes: Sequence[Outcome]  # the best first

    @classmethod
    def of(cls, study: Study, outcomes: Sequence[Outcome]) -> SweepResult:
        """Sort the outcomes by the sweep's metric."""
        return cls(study=study, outcomes=sort_by_metric(outcomes, study.sweep.metric))

    @property
    def best(self) -> Outcome | None:
        """Return the best trial that ended, if one has."""
        return find_best(self.outcomes, self.study.sweep.metric)

    @property
    def teacher(self) -> TeacherCost:
        """Return what the teachers cost over all trials."""
        return TeacherCost.of(self.outcomes)

    def to_json(self) -> dict[str, JsonValue]:
        """Return what `result.json` holds."""
        return {
            "name": self.study.base.name,
            "metric": self.study.sweep.metric,
            "best": self.best.trial.name if self.best else None,
            "num_trials": self.study.num_trials,
            "num_steps": self.study.base.learner.steps,
            "trials": [_row(outcome) for outcome in self.outcomes],
            "teacher": asdict(self.teacher),
            "seconds": {"trials": round(sum(outcome.seconds.get("total", 0.0) for outcome in self.outcomes), 1)},
        }


def format_best_toml(study: Study, best: Outcome) -> str:
    """Return the best trial's configuration as TOML, for `rayqd distill`, under a name of its own."""
    run = study.trial_config(best.trial)
    kl, step = (f"KL to teacher {best.last.kl_to_teacher:.4f}", best.last.step) if best.last else ("", 0)
    head = f"# The best of {study.base.name}: trial {best.trial.name}, {kl} at step {step} of {run.learner.steps}."
    return f"{head}\n\n{to_toml(run.model_copy(update={'name': f'{study.base.name}-best'}))}"


def print_result(console: Console, result: SweepResult, path: Path) -> None:
    """Print the table, why trials failed, and where everything lies."""
    console.print()
    study = result.study
    labels = short_labels(list(study.sweep.over))
    title = f"{study.base.name}: {len(result.outcomes)} trials, the best first"
    rows = [_cells(outcome, list(labels)) for outcome in result.outcomes]
    print_table(console, _columns(list(labels.values())), rows, title=title)
    for line in _lines_below(result, path):
        say(console, line)


def _lines_below(result: SweepResult, path: Path) -> Iterator[str]:
    failed = sorted((o for o in result.outcomes if o.state == "failed"), key=lambda outcome: outcome.trial.number)
    for outcome in failed:
        yield f"{outcome.trial.name} failed: {outcome.error}"
    teacher = result.teacher
    num_payloads = teacher.cache_hits + teacher.cache_misses
    cached = f"; {teacher.cache_hits:,} of {num_payloads:,} payloads from the cache" if num_payloads else ""
    yield f"teacher   {teacher.seconds:,.0f} s, loading included{cached}"
    if result.best:
        yield f"best      {result.best.trial.name}: rayqd distill @{short_path(path / 'best.toml')}"
    yield f"report    {short_path(path / 'report.html')}"
    yield f"result    {short_path(path / 'result.json')}"


def _row(outcome: Outcome) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = {
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


def _columns(labels: Sequence[str]) -> list[Column]:
    """Return the columns; where there is no room the settings go last but the number and the KL."""
    measured = (("KL to teacher", 0), ("perplexity", 3), ("steps", 4), ("time", 5), ("state", 2))
    settings = [Column(heading=label, rank=1) for label in labels]
    return [
        Column(heading=""),
        *settings,
        *(Column(heading=heading, rank=rank, is_words=heading == "state") for heading, rank in measured),
    ]


def _cells(outcome: Outcome, keys: Sequence[str]) -> list[str]:
    return [
        f"{outcome.trial.number:03d}",
        *(value_label(outcome.trial.settings[key]) for key in keys),
        f"{outcome.last.kl_to_teacher:.4f}" if outcome.last else "",
        f"{outcome.last.perplexity:.3f}" if outcome.last else "",
        str(outcome.step),
        duration(outcome.seconds["total"]) if "total" in outcome.seconds else "",
        outcome.state,
    ]
