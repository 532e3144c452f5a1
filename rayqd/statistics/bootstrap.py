"""The crossed bootstrap: items and seeds are drawn with replacement, each by itself, and every cell comes with both
(Owen 2007, "The pigeonhole bootstrap")."""

from __future__ import annotations

import numpy as np

from rayqd.statistics.crossed import Cells

_DRAWS = 4999


def crossed_interval(
    numerator: Cells, denominator: Cells, *, confidence: float = 0.95, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of Σ numerator / Σ denominator, each [S, R]; a function of its arguments alone.

    Of S seeds S - 1 are drawn, with which the variance between seeds is not underestimated (Rao and Wu 1988).
    """
    random = np.random.default_rng(seed)
    num_seeds, num_items = numerator.shape
    items = random.multinomial(num_items, np.full(num_items, 1 / num_items), size=draws)
    seeds = random.multinomial(max(1, num_seeds - 1), np.full(num_seeds, 1 / num_seeds), size=draws)
    above = ((seeds @ numerator) * items).sum(axis=1)
    below = ((seeds @ denominator) * items).sum(axis=1)
    tail = (1 - confidence) / 2
    ratios: list[float] = sorted((above / below).tolist())
    cut = round(tail * (draws - 1))
    return ratios[cut], ratios[-1 - cut]
