"""A sweep's search space: its combinations, its corners, and its ranges as Ray Tune's samplers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import JsonValue

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.sweep import SweepSpec
from rayqd.errors import ConfigError
from rayqd.sweep.trials import Settings, Trial

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain

Dimension = Sequence[JsonValue] | Span
SearchSpace = Mapping[str, Dimension]  # by dotted name
Point = Mapping[str, float]  # of a list the index, of a range the value

DEFAULT_TRIALS = 16  # of random and optuna
_MAX_TRIALS = 10_000
_MAX_CORNERS = 4096
_MAX_DRAWS_PER_TRIAL = 1000


def count_trials(sweep: SweepConfig) -> int:
    """Return how many trials the sweep has. Raises ConfigError if there are too many, or more than there can be."""
    combinations = count_combinations(sweep.over)
    if sweep.search == "grid":
        if combinations > _MAX_TRIALS:
            raise ConfigError(f"the grid has {combinations:,} combinations: shorten the lists, or search at random")
        return int(combinations)
    wanted = sweep.num_trials or int(min(DEFAULT_TRIALS, combinations))
    if wanted > combinations:
        raise ConfigError(
            f"there are only {combinations:g} combinations for {wanted} trials: "
            f'set sweep.num_trials to {combinations:g} or less, or sweep.search = "grid"'
        )
    return wanted


def count_combinations(over: SearchSpace) -> float:
    """Count the points of the space; inf where there is a range of numbers that need not be whole."""
    return math.prod(_size(dimension) for dimension in over.values())


def check_values(config: SweepSpec) -> None:
    """Check every combination of a grid, the corners of another space; raises ConfigError at what settings refuse."""
    for settings in corners(config.sweep.over):
        config.config(settings)


def corners(over: SearchSpace) -> Iterator[Settings]:
    """Yield combinations of lists' values and of ranges' ends; where those are too many, each value alone."""
    ends = {key: _ends(dimension) for key, dimension in over.items()}
    if math.prod(map(len, ends.values())) <= max(_MAX_CORNERS, *map(len, ends.values())):
        yield from (dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values()))
        return
    for key, values in ends.items():
        yield from ({key: value} for value in values)


def enumerate_grid(over: SearchSpace) -> list[Trial]:
    """Return every combination of the lists; the last one changes fastest."""
    lists = [list(dimension) for dimension in over.values() if not isinstance(dimension, Span)]
    return [
        Trial(number=number, settings=dict(zip(over, values, strict=True)))
        for number, values in enumerate(itertools.product(*lists), 1)
    ]


def sample_trials(over: SearchSpace, num: int, seed: int) -> list[Trial]:
    """Draw `num` different trials from the space: a pure function of its arguments."""
    domains = make_tune_space(over)
    random = np.random.default_rng(seed)
    distinct: dict[str, Settings] = {}
    for _ in range(_MAX_DRAWS_PER_TRIAL * num):
        settings = settings_at({key: domain.sample(random_state=random) for key, domain in domains.items()}, over)
        distinct.setdefault(repr(settings), settings)
        if len(distinct) == num:
            break
    return [Trial(number=number, settings=settings) for number, settings in enumerate(distinct.values(), 1)]


def make_tune_space(over: SearchSpace) -> dict[str, Domain]:
    """Return Ray Tune's samplers by dotted name; of a list the index is drawn, which can always be compared."""
    return {key: _domain(dimension) for key, dimension in over.items()}


def settings_at(point: Point, over: SearchSpace) -> dict[str, JsonValue]:
    """Return the settings at a point of the Tune space; those of ranges with three digits, for names to be read."""
    return {key: _value_at(point[key], dimension) for key, dimension in over.items()}


def point_at(settings: Settings, over: SearchSpace) -> dict[str, float]:
    """Return the point of the Tune space where `settings` are."""
    return {key: _coordinate(value, over[key]) for key, value in settings.items()}


def _coordinate(value: JsonValue, dimension: Dimension) -> float:
    if not isinstance(dimension, Span):
        return list(dimension).index(value)
    assert isinstance(value, int | float)
    return value


def _value_at(coordinate: float, dimension: Dimension) -> JsonValue:
    if not isinstance(dimension, Span):
        return dimension[int(coordinate)]
    if dimension.integer:
        return int(coordinate)
    return min(max(float(f"{coordinate:.3g}"), float(dimension.low)), float(dimension.high))


def _domain(dimension: Dimension) -> Domain:
    from ray import tune

    match dimension:
        case Span(low=low, high=high, log=log, integer=True):
            return (tune.lograndint if log else tune.randint)(int(low), int(high) + 1)  # Tune leaves the end out
        case Span(low=low, high=high, log=log):
            return (tune.loguniform if log else tune.uniform)(float(low), float(high))
        case _:
            return tune.choice(list(range(len(dimension))))


def _ends(dimension: Dimension) -> list[JsonValue]:
    return [dimension.low, dimension.high] if isinstance(dimension, Span) else list(dimension)


def _size(dimension: Dimension) -> float:
    if not isinstance(dimension, Span):
        return len(dimension)
    return int(dimension.high) - int(dimension.low) + 1 if dimension.integer else math.inf
