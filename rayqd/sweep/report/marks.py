"""What a trial looks like wherever it is drawn: stronger the better it is, hollow or dashed if it was stopped early."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rayqd.sweep.outcome import Outcome, best_of
from rayqd.sweep.trials import short_labels, value_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """All trials that have a value of the metric, and how each is drawn."""

    metric: str
    outcomes: Sequence[Outcome]  # with a value, by number
    shares: Mapping[int, float]  # by number: 0 the worst, 1 the best, over orders of magnitude
    best: int | None  # number of the best trial

    def attributes(self, outcome: Outcome, *classes: str) -> Markup:
        """Class, colour, and the number by which page and table find each other's marks."""
        own = [*classes, "best"] if outcome.trial.number == self.best else [*classes]
        if outcome.state != "finished":
            own.append("early")
        share = round(100 * self.shares[outcome.trial.number])
        return Markup('class="{}" data-trial="{}" style="--share:{}%"').format(
            " ".join(own), outcome.trial.number, share
        )

    def value(self, outcome: Outcome) -> float:
        found = outcome.metric(self.metric)
        assert found is not None
        return found


def marks_of(outcomes: Sequence[Outcome], metric: str) -> Marks:
    known = sorted((o for o in outcomes if o.metric(metric) is not None), key=lambda outcome: outcome.trial.number)
    values = {outcome.trial.number: outcome.metric(metric) or 0.0 for outcome in known}
    best = best_of(outcomes, metric)
    return Marks(
        metric=metric,
        outcomes=known,
        shares=goodness(values),
        best=best.trial.number if best else None,
    )


def goodness(values: Mapping[int, float]) -> dict[int, float]:
    """0 for the largest of `values`, 1 for the least, over orders of magnitude."""
    logs = {key: math.log(max(value, 1e-12)) for key, value in values.items()}
    low, high = min(logs.values(), default=0.0), max(logs.values(), default=0.0)
    return {key: (high - value) / (high - low) if high > low else 1.0 for key, value in logs.items()}


def spoken(outcome: Outcome) -> str:
    """`003: lr 1e-4, lmbda 0.5; KL to teacher 0.1033, stopped early at step 20`."""
    labels = short_labels(list(outcome.trial.settings))
    settings = ", ".join(f"{labels[key]} {value_label(value)}" for key, value in outcome.trial.settings.items())
    found = f"KL to teacher {outcome.kl_to_teacher:.4f}, perplexity {outcome.perplexity:.3f}"
    fate = outcome.state if outcome.state == "finished" else f"{outcome.state} at step {outcome.step}"
    return f"{outcome.trial.number:03d}: {settings}; {found}, {fate}"
