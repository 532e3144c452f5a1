"""The axes of a sweep's charts: a setting as it is searched, and the metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from rayqd.config.sections.sweep import Span
from rayqd.report.axis import Axis, interpolate, linear_axis, round_ticks
from rayqd.sweep.trials import value_label

_MAX_LISTED = 8  # values of a list that all get a tick


def setting_axis(title: str, dimension: Sequence[object] | Span) -> Axis:
    """Return the axis of a swept setting: its range as it is drawn from, or what its list holds."""
    if isinstance(dimension, Span):
        return number_axis(title, float(dimension.low), float(dimension.high), log=dimension.log)
    numbers = sorted(value for value in dimension if isinstance(value, int | float) and not isinstance(value, bool))
    if len(dimension) > 1 and len(numbers) == len(dimension):
        return _listed_numbers_axis(title, numbers)
    axis = Axis(title=title, names=tuple(value_label(value) for value in dimension))
    return _with_ticks(axis, axis.names)


def metric_axis(title: str, values: Sequence[float]) -> Axis:
    """Return an axis a little wider than `values`, logarithmic where some are four times others."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= 4:
        margin = (high / low) ** 0.06
        return number_axis(title, low / margin, high * margin, log=True)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return number_axis(title, low - margin, high + margin, log=False)


def number_axis(title: str, low: float, high: float, *, log: bool) -> Axis:
    """Return an axis with round numbers beside it that lie between `low` and `high`."""
    if not log:
        return linear_axis(low, high, round_ticks(low, high), title)
    return _with_ticks(Axis(title=title, low=low, high=high, log=True), _log_ticks(low, high))


def position(axis: Axis, value: object) -> float:
    """Return where a setting's value lies, from 0 to 1."""
    return axis.position(float(value) if isinstance(value, int | float) and not axis.names else value_label(value))


def _with_ticks(axis: Axis, values: Sequence[object]) -> Axis:
    """Return the axis with a tick at each of `values`."""
    return replace(axis, ticks=tuple((position(axis, value), value_label(value)) for value in values))


def _listed_numbers_axis(title: str, numbers: Sequence[float]) -> Axis:
    """Return an axis, linear or logarithmic, on which sorted numbers are spread more evenly."""
    low, high = numbers[0], numbers[-1]
    log = low > 0 and _widest_gap(numbers, log=True) < _widest_gap(numbers, log=False)
    if len(numbers) > _MAX_LISTED:
        return number_axis(title, low, high, log=log)
    return _with_ticks(Axis(title=title, low=low, high=high, log=log), numbers)


def _widest_gap(numbers: Sequence[float], *, log: bool) -> float:
    """Return the widest gap between neighbours among sorted numbers, as a share of the axis."""
    positions = [interpolate(number, numbers[0], numbers[-1], log=log) for number in numbers]
    return max(b - a for a, b in pairwise(positions))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, and where those are few also multiples of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [float(f"{factor * 10.0**power:.3g}") for power in powers for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return [low, high]
