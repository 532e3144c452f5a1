"""Is one model's score another than the teacher's, or is it noise? Both have answered the same documents.

A document that is hard for one is hard for the other, so the differences document by document vary far less than the
scores do: Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640), section 4.2,

    SE = sqrt(Σ (dᵢ - d̄)² / (n - 1) / n),   dᵢ = sᵢ(model) - sᵢ(teacher),   n documents
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["same", "within noise", "better", "worse"]
Aggregation = Callable[[Sequence[Any]], float]

_TWO_SIDED_95 = 1.959963984540054  # quantile of the normal distribution at 0.975
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Of a model's score to the teacher's."""

    value: float  # model - teacher, in the metric's unit
    stderr: float | None  # paired, same unit; None where a single document says nothing of it

    def verdict(self, *, higher_is_better: bool) -> Verdict | None:
        """Judge whether the difference is outside of 0 ± 1.96 standard errors (95 %); None where there is no error."""
        if self.stderr is None:
            return None
        if abs(self.value) <= _TWO_SIDED_95 * self.stderr:
            return "within noise" if self.stderr else "same"
        return "better" if (self.value > 0) == higher_is_better else "worse"


def mean_difference(model: Sequence[float], teacher: Sequence[float]) -> Difference:
    """Compare a metric that is a mean over the documents; scores of both in the same order of documents."""
    differences = [float(m) - float(t) for m, t in zip(model, teacher, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    if n < 2:
        return Difference(value=mean, stderr=None)
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    return Difference(value=mean, stderr=math.sqrt(variance / n))


def resampled_difference(model: Sequence[Any], teacher: Sequence[Any], aggregation: Aggregation) -> Difference:
    """Compare a metric that is no mean, a perplexity for instance: the same documents are drawn for both (paired
    bootstrap, Efron and Tibshirani 1993, chapter 6), with a fixed seed."""
    n = len(model)
    value = aggregation(model) - aggregation(teacher)
    if n < 2:
        return Difference(value=value, stderr=None)
    generator = random.Random(0)
    resampled: list[float] = []
    for _ in range(_RESAMPLES):
        rows = generator.choices(range(n), k=n)
        resampled.append(aggregation([model[i] for i in rows]) - aggregation([teacher[i] for i in rows]))
    mean = math.fsum(resampled) / _RESAMPLES
    return Difference(value=value, stderr=math.sqrt(math.fsum((d - mean) ** 2 for d in resampled) / (_RESAMPLES - 1)))


def weighted_difference(parts: Sequence[Difference], weights: Sequence[float]) -> Difference:
    """Compare a group's score, Σ wₜ·scoreₜ with Σ wₜ = 1; its tasks have no documents in common, so variances add."""
    value = math.fsum(w * part.value for w, part in zip(weights, parts, strict=True))
    errors = [part.stderr for part in parts]
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return Difference(value=value, stderr=None)
    return Difference(value=value, stderr=math.hypot(*(w * e for w, e in zip(weights, known, strict=True))))
