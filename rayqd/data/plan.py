"""Which examples a step trains on, which of them the student completes itself, and with what sampling seed.

A pure function of (config, step): whatever dies, the same work can be asked for again, and no state is kept for it.

    n = step * batch_size + index    the sequence's number in the run
    (source, k) of n                 it is the k-th that comes from that source, as `shares.py` spreads them by weight
    k                                position k % N in the order of epoch k // N, of the N examples of the source
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rayqd.config import Config
from rayqd.data.shares import count_drawn, list_drawn
from rayqd.types import PlannedSequence

# One stream of random numbers for each use of the seed, so that none of them tells of another.
_ORDER, _ON_POLICY, _SAMPLING, _GENERATION = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole run's sequences, each computed when it is asked for."""

    num_examples: tuple[int, ...]  # N of each source; the examples of one follow those of another
    batch_size: int  # sequences a step
    lmbda: float  # share of the sequences that are on-policy
    seed: int
    first_on_policy_step: int = 0  # the steps before it are off-policy
    weights: tuple[float, ...] = (1.0,)  # of each source; its share of the sequences is its share of their sum

    def step(self, step: int) -> list[PlannedSequence]:
        """Return the `batch_size` sequences of `step`, by index."""
        on_policy = self._on_policy_indices(step)
        first = step * self.batch_size
        return [
            PlannedSequence(
                step=step,
                index=index,
                example=self._example(source, draw),
                on_policy=index in on_policy,
                seed=self._sampling_seed(step, index),
                source=source,
            )
            for index, (source, draw) in enumerate(list_drawn(self.weights, first, first + self.batch_size))
        ]

    def num_drawn(self, num_steps: int) -> list[int]:
        """Count the sequences of the first `num_steps` steps that come from each source."""
        return count_drawn(self.weights, num_steps * self.batch_size)

    def num_on_policy(self, step: int) -> int:
        """Count the on-policy sequences in `step`: lmbda · batch_size rounded down or up, so that the sum is exact."""
        return self._num_on_policy_before(step + 1) - self._num_on_policy_before(step)

    def needs_student(self, steps: Iterable[int]) -> bool:
        """Return whether the student writes any of the sequences of `steps`, so that its weights are needed."""
        return any(self.num_on_policy(step) for step in steps)

    def _num_on_policy_before(self, step: int) -> int:
        """Return lmbda times the number of sequences before `step`, rounded half up; lmbda in decimal, as written."""
        share, num_steps = Fraction(str(self.lmbda)), max(0, step - self.first_on_policy_step)
        return math.floor(share * self.batch_size * num_steps + Fraction(1, 2))

    def _on_policy_indices(self, step: int) -> set[int]:
        order = _generator(self.seed, _ON_POLICY, step).permutation(self.batch_size)
        return set(order[: self.num_on_policy(step)].tolist())

    def _example(self, source: int, draw: int) -> int:
        epoch, position = divmod(draw, self.num_examples[source])
        order = _epoch_order(self.num_examples[source], self.seed, epoch, source)
        return sum(self.num_examples[:source]) + int(order[position])

    def _sampling_seed(self, step: int, index: int) -> int:
        return _engine_seed(self.seed, _SAMPLING, step, index)


def make_plan(config: Config, num_examples: Sequence[int]) -> Plan:
    """Return the plan of the run that `config` describes, with `num_examples` training examples of each source."""
    return Plan(
        num_examples=tuple(num_examples),
        batch_size=config.learner.batch_size,
        lmbda=config.distill.lmbda,
        seed=config.seed,
        first_on_policy_step=first_on_policy_step(config),
        weights=tuple(source.weight for source in config.data.each_source),
    )


def first_on_policy_step(config: Config) -> int:
    """Return how many steps come before those that `distill.lmbda` holds for."""
    return config.first_on_policy_step


def steps_ahead(step: int, max_staleness: int, num_steps: int) -> range:
    """Return the steps whose work starts, at the latest, when the learner asks for `step`."""
    return range(step, min(step + max_staleness + 1, num_steps))


def off_policy_examples(plan: Plan, num_steps: int) -> list[int]:
    """Return the examples that the run trains on with a completion not of the student, each once, sorted."""
    return sorted({s.example for step in range(num_steps) for s in plan.step(step) if not s.on_policy})


def generation_seed(seed: int, row: int, source: int = 0) -> int:
    """Return the sampling seed of a model's completion for row `row` of a data set, whatever else is sampled."""
    return _engine_seed(seed, _GENERATION, row, *_key_of_source(source))


def _engine_seed(seed: int, *key: int) -> int:
    """Return 31 bits, as the engines take a signed 32-bit or wider integer that is not negative."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint32)[0]) >> 1


@lru_cache(maxsize=32)  # two of each source, and a source of a million examples has 4 MB
def _epoch_order(num_examples: int, seed: int, epoch: int, source: int) -> NDArray[np.uint32]:
    order = _generator(seed, _ORDER, epoch, *_key_of_source(source)).permutation(num_examples).astype(np.uint32)
    order.setflags(write=False)
    return order


def _key_of_source(source: int) -> tuple[int, ...]:
    """Return what tells a source's random numbers from the others'; the first has those of a run with no others."""
    return (source,) if source else ()


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
