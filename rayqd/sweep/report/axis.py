"""Where a value lies on an axis, and what stands beside it: numbers evenly, over orders of magnitude, or names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rayqd.config.sections.sweep import Span
from rayqd.report.chart import tick_texts, ticks
from rayqd.sweep.trials import value_label

_MOST_LISTED = 8  # values of a list that all get a tick


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis from 0 to 1."""

    title: str
    ticks: tuple[tuple[float, str], ...]  # where, and its text
    names: tuple[str, ...] = ()  # of an axis of names, whose values lie evenly
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def at(self, value: Any) -> float:
        """Between 0 and 1, for values between low and high."""
        if self.names:
            return _even(self.names.index(value_label(value)), len(self.names))
        return _share(float(value), self.low, self.high, self.log)


def setting_axis(title: str, dimension: Sequence[Any] | Span) -> Axis:
    """Of a swept setting: as its range is drawn from, or by what its list holds."""
    if isinstance(dimension, Span):
        return number_axis(title, float(dimension.low), float(dimension.high), log=dimension.log)
    if len(dimension) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in dimension):
        values = sorted(dimension)
        low, high = values[0], values[-1]
        log = low > 0 and _widest_gap(values, log=True) < _widest_gap(values, log=False)
        if len(values) > _MOST_LISTED:
            return number_axis(title, low, high, log=log)
        marks = tuple((_share(value, low, high, log), value_label(value)) for value in values)
        return Axis(title=title, ticks=marks, low=low, high=high, log=log)
    names = tuple(value_label(value) for value in dimension)
    marks = tuple((_even(i, len(names)), name) for i, name in enumerate(names))
    return Axis(title=title, ticks=marks, names=names)


def number_axis(title: str, low: float, high: float, *, log: bool) -> Axis:
    """With round numbers beside it, that lie between `low` and `high`."""
    values = _log_ticks(low, high) if log else [value for value in ticks(low, high) if low <= value <= high]
    texts = [value_label(value) for value in values] if log else tick_texts(values or [low])
    marks = tuple((_share(value, low, high, log), text) for value, text in zip(values, texts, strict=False))
    return Axis(title=title, ticks=marks, low=low, high=high, log=log)


def metric_axis(title: str, values: Sequence[float]) -> Axis:
    """Of a metric: a little wider than what was found, and over orders of magnitude where a few are far off."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= 4:
        room = (high / low) ** 0.06
        return number_axis(title, low / room, high * room, log=True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return number_axis(title, low - room, high + room, log=False)


def _widest_gap(values: Sequence[float], *, log: bool) -> float:
    """Between neighbours, of sorted numbers: a list is shown on the axis that it is spread on more evenly."""
    places = [_share(value, values[0], values[-1], log) for value in values]
    return max(b - a for a, b in pairwise(places))


def _share(value: float, low: float, high: float, log: bool) -> float:
    if high <= low:
        return 0.5
    if log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def _even(position: int, count: int) -> float:
    return position / (count - 1) if count > 1 else 0.5


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and where those are few also 2 and 5 times them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [float(f"{factor * 10.0**power:.3g}") for power in powers for factor in factors]
        inside = [value for value in found if low <= value <= high]
        if len(inside) >= 3:
            return inside
    return [low, high]
