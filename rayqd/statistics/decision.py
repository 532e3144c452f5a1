"""Better, worse, equivalent within a margin, or not decided, and then how many more items or seeds would decide it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rayqd.statistics import holm
from rayqd.statistics.crossed import LEAST_ITEMS, Estimate

Outcome = Literal["better", "worse", "equivalent", "not decided"]

LEVEL = 0.05  # of the tests of one kind, all arms together
_MOST = 1 << 24  # items or seeds beyond which more of them decide nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """How many there would have to be, if the value and the variances stay what they are; None: no number would do."""

    items: int | None  # with as many seeds as there are
    seeds: int | None  # with as many items as there are; None too where one seed says nothing of others


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the tests say of one difference; of a quantity of which less is better."""

    difference: Estimate
    outcome: Outcome
    p_different: float | None  # corrected; None where the items are too few for a test, or not all is finite
    p_equivalent: float | None  # likewise
    needed: Needed | None  # None where it is decided, or nothing can be said of it


def decide(differences: Sequence[Estimate], margin: float) -> list[Decision]:
    """Test each of `differences` for being another than 0, and for being within ±margin, Holm's correction over all.

    Equivalence goes first: a difference that is certain and smaller than anybody cares about is none.
    """
    different = _corrected([each.p_different() for each in differences])
    equivalent = _corrected([each.p_equivalent(margin) for each in differences])
    return [
        _decide(difference, p, q, margin, len(differences))
        for difference, p, q in zip(differences, different, equivalent, strict=True)
    ]


def _decide(difference: Estimate, p: float | None, q: float | None, margin: float, num_tests: int) -> Decision:
    outcome: Outcome = "not decided"
    if q is not None and q < LEVEL:
        outcome = "equivalent"
    elif p is not None and p < LEVEL:
        outcome = "better" if difference.value < 0 else "worse"
    needed = (
        _needed(difference, margin, LEVEL / num_tests) if outcome == "not decided" and difference.is_finite else None
    )
    return Decision(difference=difference, outcome=outcome, p_different=p, p_equivalent=q, needed=needed)


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    known = [p for p in p_values if p is not None]
    adjusted = iter(holm.adjust(known))
    return [None if p is None else next(adjusted) for p in p_values]


def _needed(difference: Estimate, margin: float, level: float) -> Needed:
    """Find the fewest that decide at `level`, which is the strictest that Holm's correction may ask for."""
    items, seeds = difference.num_items, difference.num_seeds
    if items < LEAST_ITEMS:
        return Needed(items=LEAST_ITEMS, seeds=None)

    def decides(num_items: int, num_seeds: int) -> bool:
        ahead = difference.half_width(level / 2, num_items, num_seeds)
        within = difference.half_width(level, num_items, num_seeds)
        return ahead < abs(difference.value) or within < margin - abs(difference.value)

    return Needed(
        items=_least(items + 1, lambda number: decides(number, seeds)),
        seeds=_least(seeds + 1, lambda number: decides(items, number)) if seeds > 1 else None,
    )


def _least(low: int, decides: Callable[[int], bool]) -> int | None:
    """Return the least number from `low` on that decides; None where none up to _MOST does."""
    high = low
    while not decides(high):
        low, high = high + 1, 2 * high
        if high > _MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        if decides(middle):
            high = middle
        else:
            low = middle + 1
    return low
