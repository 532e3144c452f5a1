"""Intervals of what was measured on held-out rows: how far it might be off, had other rows been held out.

Rows are drawn with replacement, the same ones for every model that is compared (a paired bootstrap); the interval is
the bias-corrected and accelerated one, BCa (Efron and Tibshirani 1993, chapter 14), as scipy computes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:  # `rayqd runs` reads results, and has no numbers to compute
    import numpy as np
    from numpy.typing import NDArray

    Sums: TypeAlias = NDArray[np.float64]

LEAST_ROWS = 10  # with fewer, bootstrap intervals are far too narrow
CONFIDENCE = 0.95
_RESAMPLES = 4999


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where the value lies with 95 % confidence."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Return whether `value` is outside of it."""
        return not self.low <= value <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its interval."""

    value: float
    interval: Interval | None  # None where the rows are too few for one

    def to_json(self) -> dict[str, float]:
        """Return value, and low and high where there are any."""
        between = {"low": self.interval.low, "high": self.interval.high} if self.interval else {}
        return {"value": self.value, **between}


def estimate(statistic: Callable[..., Any], *columns: Sequence[float]) -> Estimate:
    """Compute `statistic` of the sums of `columns` over the rows, each [R], and its interval.

    `statistic` takes a sum for each column, or arrays of them, and is elementwise.
    """
    return _estimate(statistic, *(tuple(map(float, column)) for column in columns))


@lru_cache(maxsize=4096)  # a run's page is written again and again
def _estimate(statistic: Callable[..., Any], *columns: tuple[float, ...]) -> Estimate:
    import numpy as np

    rows = [np.asarray(column) for column in columns]
    value = float(statistic(*(row.sum() for row in rows)))
    return Estimate(value=value, interval=_interval(statistic, rows, value))


def _interval(statistic: Callable[..., Any], rows: Sequence[Sums], value: float) -> Interval | None:
    import numpy as np

    if len(rows[0]) < LEAST_ROWS or not np.isfinite(value):
        return None
    from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

    bootstrap = cast("Callable[..., Any]", stats.bootstrap)  # pyright: ignore[reportUnknownMemberType]

    def of_rows(*drawn: Sums, axis: int) -> Any:
        sums: list[Any] = [each.sum(axis=axis) for each in drawn]
        return statistic(*sums)

    settings: dict[str, Any] = {"paired": True, "vectorized": True, "n_resamples": _RESAMPLES, "rng": 0}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # where all rows say the same, BCa is not defined
        found = bootstrap(tuple(rows), of_rows, confidence_level=CONFIDENCE, **settings).confidence_interval
        if not np.isfinite([found.low, found.high]).all():
            found = bootstrap(tuple(rows), of_rows, method="percentile", **settings).confidence_interval
    low, high = float(found.low), float(found.high)
    return Interval(low=low, high=high) if np.isfinite([low, high]).all() else None


def ratio(total: Any, num: Any) -> Any:
    """Return a mean over tokens, of a sum over them and their number."""
    return total / num


def perplexity(nll: Any, num: Any) -> Any:
    """Return exp of the mean negative log-likelihood."""
    import numpy as np

    return np.exp(nll / num)


def recovered(damage: Any, left: Any) -> Any:
    """Return which share of `damage` is gone where `left` of it is left."""
    return 1 - left / damage


def change(before: Any, after: Any) -> Any:
    """Return the relative change."""
    return after / before - 1
