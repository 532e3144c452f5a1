"""A chart's axis: where values lie on it, and the round numbers beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high`, or `names` evenly spaced."""

    title: str = ""
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    names: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()  # position from 0 to 1, and its text

    def position(self, value: float | str) -> float:
        """Return where a number from low to high, or a name, lies: 0 at the axis's start, 1 at its end."""
        if isinstance(value, str):
            return self.names.index(value) / (len(self.names) - 1) if len(self.names) > 1 else 0.5
        return interpolate(value, self.low, self.high, log=self.log)


def linear_axis(low: float, high: float, values: Sequence[float], title: str = "") -> Axis:
    """Return an axis with ticks at those `values` that lie between low and high."""
    inside = [value for value in values if low <= value <= high]
    texts = format_ticks(inside) if inside else []
    ticks = tuple((interpolate(value, low, high), text) for value, text in zip(inside, texts, strict=True))
    return Axis(title=title, low=low, high=high, ticks=ticks)


def interpolate(value: float, low: float, high: float, *, log: bool = False) -> float:
    """Return 0 for low, 1 for high, and what is between; 0.5 where they are the same."""
    if high <= low:
        return 0.5
    if log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def round_ticks(low: float, high: float, *, from_zero: bool = False, count: int = 4) -> list[float]:
    """Return about `count` round numbers that enclose low and high, evenly spaced."""
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        around = abs(low) / 2 or 0.5
        low, high = (low, low + 2 * around) if from_zero or low == 0 else (low - around, low + around)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if rough <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def format_ticks(values: Sequence[float]) -> list[str]:
    """Write all `values` with as many decimals as the finest needs."""
    largest = max(abs(v) for v in values)
    if 0 < largest < 1e-3:
        return [f"{v:.3g}".replace("e-0", "e-") for v in values]
    if largest >= 10_000:
        return [f"{v / 1000:,g}k" for v in values]
    decimals = next((d for d in range(7) if all(abs(round(v, d) - v) < 1e-9 for v in values)), 7)
    return [f"{v:,.{decimals}f}" for v in values]
