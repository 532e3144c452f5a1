"""From which source each sequence of a run comes: in the order of Webster's (Sainte-Laguë's) apportionment.

The k-th sequence of a source, from 0, is due when (k + 1/2) / share of all have come, and they come as they are due. So
after any number of sequences each source has given its share of them, rounded, and what it gives lies evenly among the
others'. Whatever their number, the n-th is found without those before it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache


def count_drawn(weights: Sequence[float], num_sequences: int) -> list[int]:
    """Return how many of the first `num_sequences` come from each source."""
    counts = _counts_before(weights, num_sequences)
    for source, draw in _draws_from(weights, counts, num_sequences - sum(counts)):
        counts[source] = draw + 1
    return counts


def list_drawn(weights: Sequence[float], start: int, stop: int) -> list[tuple[int, int]]:
    """Return of the sequences from `start` to `stop` which source each comes from, and which of that source's it is."""
    counts = _counts_before(weights, start)
    before = start - sum(counts)
    return list(_draws_from(weights, counts, stop - start + before))[before:]


def _counts_before(weights: Sequence[float], num_sequences: int) -> list[int]:
    """Return how many are due before a time at which no more than `num_sequences` are, and at most two a source fewer.

    Counts are rounded shares of the time, so their sum is at most half a sequence a source from it.
    """
    numerators = _numerators(tuple(weights))
    time, total = max(0, 2 * num_sequences - len(numerators)), sum(numerators)  # the time in halves of a sequence
    return [max(0, -((total - time * each) // (2 * total))) for each in numerators]


def _draws_from(weights: Sequence[float], counts: Sequence[int], num_draws: int) -> Iterator[tuple[int, int]]:
    """Yield the next `num_draws` after `counts` of each source; where two are due together, the earlier source's."""
    numerators = _numerators(tuple(weights))
    multiple = math.lcm(*numerators)
    steps = [multiple // each for each in numerators]  # between two draws of a source
    due = [((2 * count + 1) * steps[source], source, count) for source, count in enumerate(counts)]
    heapq.heapify(due)
    for _ in range(num_draws):
        _, source, draw = due[0]
        yield source, draw
        heapq.heapreplace(due, ((2 * draw + 3) * steps[source], source, draw + 1))


@lru_cache(maxsize=64)
def _numerators(weights: tuple[float, ...]) -> list[int]:
    """Return whole numbers in the same proportions; weights in decimal, as they are written."""
    fractions = [Fraction(str(weight)) for weight in weights]
    denominator = math.lcm(*(each.denominator for each in fractions))
    whole = [int(each * denominator) for each in fractions]
    return [each // math.gcd(*whole) for each in whole]
