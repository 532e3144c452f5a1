"""Holm's correction: several tests, and still at most 5 % that any of them errs (Holm 1979).

Written here, as scipy has it not, and importing statsmodels for these lines takes 2 s of a core; its numbers are in the
tests.
"""

from __future__ import annotations

from collections.abc import Sequence


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-values, in the same order: max over the k smaller ones of (m - k)·p, at most 1."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
