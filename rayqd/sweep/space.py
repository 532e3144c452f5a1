"""What a sweep may try: its combinations, its corners, and its ranges as Ray Tune's samplers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.sweep import SweepSpec
from rayqd.errors import ConfigError
from rayqd.sweep.trials import Trial

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

Over = Mapping[str, Sequence[Any] | Span]

USUAL_TRIALS = 16  # of random and optuna
_MOST_TRIALS = 10_000
_MOST_CORNERS = 4096
_MOST_DRAWS = 1000


def num_trials(sweep: SweepConfig) -> int:
    """How many trials the sweep has. Raises ConfigError if there are too many, or more than there can be."""
    combinations = num_combinations(sweep.over)
    if sweep.search == "grid":
        if combinations > _MOST_TRIALS:
            raise ConfigError(f"the grid has {combinations:,} combinations: shorten the lists, or search at random")
        return int(combinations)
    wanted = sweep.num_trials or int(min(USUAL_TRIALS, combinations))
    if wanted > combinations:
        raise ConfigError(
            f"there are only {combinations:g} combinations for {wanted} trials: "
            f'set sweep.num_trials to {combinations:g} or less, or sweep.search = "grid"'
        )
    return wanted


def num_combinations(over: Over) -> float:
    """Points of the space; inf where there is a range of numbers that need not be whole."""
    return math.prod(_size(dimension) for dimension in over.values())


def check_values(config: SweepSpec) -> None:
    """Raises ConfigError at a value, or a combination, that the settings refuse.

    Of a grid every combination is looked at, of other searches every list's values together with both ends of every
    range; where those are too many, each value alone.
    """
    for values in corners(config.sweep.over):
        config.config(values)


def corners(over: Over) -> Iterator[dict[str, Any]]:
    """Combinations of lists' values and of ranges' ends."""
    ends = {key: _ends(dimension) for key, dimension in over.items()}
    if math.prod(map(len, ends.values())) <= max(_MOST_CORNERS, *map(len, ends.values())):
        yield from (dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values()))
        return
    for key, values in ends.items():
        yield from ({key: value} for value in values)


def grid(over: Over) -> list[Trial]:
    """Every combination of the lists; the last one changes fastest."""
    lists = [list(dimension) for dimension in over.values() if not isinstance(dimension, Span)]
    return [
        Trial(number=number, settings=dict(zip(over, values, strict=True)))
        for number, values in enumerate(itertools.product(*lists), 1)
    ]


def drawn(over: Over, num: int, seed: int) -> list[Trial]:
    """`num` different trials drawn from the space: a pure function of its arguments."""
    domains = tune_space(over)
    random = np.random.default_rng(seed)
    found: dict[str, dict[str, Any]] = {}
    for _ in range(_MOST_DRAWS * num):
        values = settings_at({key: domain.sample(random_state=random) for key, domain in domains.items()}, over)
        found.setdefault(repr(values), values)
        if len(found) == num:
            break
    return [Trial(number=number, settings=values) for number, values in enumerate(found.values(), 1)]


def tune_space(over: Over) -> dict[str, Domain]:
    """The space in Ray Tune's words, by dotted name; of a list the position is drawn, which can always be compared."""
    return {key: _domain(dimension) for key, dimension in over.items()}


def settings_at(point: Mapping[str, Any], over: Over) -> dict[str, Any]:
    """The settings at a point of `tune_space`. What lies in a range gets three digits, for names are to be read."""
    return {key: _value_at(point[key], dimension) for key, dimension in over.items()}


def point_of(settings: Mapping[str, Any], over: Over) -> dict[str, Any]:
    """The point of `tune_space` where `settings` are."""
    return {
        key: value if isinstance(over[key], Span) else list(over[key]).index(value) for key, value in settings.items()
    }


def _value_at(drawn: Any, dimension: Sequence[Any] | Span) -> Any:
    if not isinstance(dimension, Span):
        return dimension[drawn]
    if dimension.integer:
        return int(drawn)
    return min(max(float(f"{drawn:.3g}"), float(dimension.low)), float(dimension.high))


def _domain(dimension: Sequence[Any] | Span) -> Domain:
    from ray import tune

    match dimension:
        case Span(low=low, high=high, log=log, integer=True):
            return (tune.lograndint if log else tune.randint)(int(low), int(high) + 1)  # Tune leaves the end out
        case Span(low=low, high=high, log=log):
            return (tune.loguniform if log else tune.uniform)(float(low), float(high))
        case _:
            return tune.choice(list(range(len(dimension))))


def _ends(dimension: Sequence[Any] | Span) -> list[Any]:
    return [dimension.low, dimension.high] if isinstance(dimension, Span) else list(dimension)


def _size(dimension: Sequence[Any] | Span) -> float:
    if not isinstance(dimension, Span):
        return len(dimension)
    return int(dimension.high) - int(dimension.low) + 1 if dimension.integer else math.inf
