"""What a trial looks like wherever it is drawn: stronger the better it is, hollow or dashed if it was stopped early."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from rayqd.sweep.trials import Outcome, find_best, short_labels, value_label

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """All trials that have a value of the metric, and how each is drawn."""

    metric: str  # as sweep.metric names it
    metric_title: str
    outcomes: Sequence[Outcome]  # with a value, by number
    strength: Mapping[int, float]  # by number: 0 the worst, 1 the best, on a logarithmic scale
    best: int | None  # number of the best trial

    @classmethod
    def of(cls, outcomes: Sequence[Outcome], metric: str, metric_title: str) -> Marks:
        """Mark those of `outcomes` that have a value."""
        measured = [outcome for outcome in outcomes if outcome.last is not None]
        best = find_best(outcomes, metric)
        return cls(
            metric=metric,
            metric_title=metric_title,
            outcomes=sorted(measured, key=lambda outcome: outcome.trial.number),
            strength=scale_strength({outcome.trial.number: outcome.metric(metric) or 0.0 for outcome in measured}),
            best=best.trial.number if best else None,
        )

    def attributes(self, outcome: Outcome, *classes: str) -> Markup:
        """Return class, colour, and the number by which page and table find each other's marks."""
        names = [*classes, "best"] if outcome.trial.number == self.best else [*classes]
        if outcome.state != "finished":
            names.append("early")
        share = round(100 * self.strength[outcome.trial.number])
        return Markup('class="{}" data-trial="{}" style="--share:{}%"').format(
            " ".join(names), outcome.trial.number, share
        )

    def value(self, outcome: Outcome) -> float:
        """Return the metric at the last evaluation."""
        value = outcome.metric(self.metric)
        assert value is not None
        return value

    def weakest_first(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Sort for drawing, so that the best lies on top."""
        return sorted(outcomes, key=lambda outcome: self.strength[outcome.trial.number])


def scale_strength(values: Mapping[_Key, float]) -> dict[_Key, float]:
    """Return 0 for the largest of `values`, 1 for the least, on a logarithmic scale."""
    logs = {key: math.log(max(value, 1e-12)) for key, value in values.items()}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    return {key: (high - value) / (high - low) if high > low else 1.0 for key, value in logs.items()}


def describe_trial(outcome: Outcome) -> str:
    """Return `003: lr 1e-4, lmbda 0.5; KL to teacher 0.1033, perplexity 21.310, stopped early at step 20`."""
    labels = short_labels(list(outcome.trial.settings))
    settings = ", ".join(f"{labels[key]} {value_label(value)}" for key, value in outcome.trial.settings.items())
    last = outcome.last
    result = f"KL to teacher {last.kl_to_teacher:.4f}, perplexity {last.perplexity:.3f}, " if last else ""
    state = outcome.state if outcome.state == "finished" else f"{outcome.state} at step {outcome.step}"
    return f"{outcome.trial.number:03d}: {settings}; {result}{state}"
