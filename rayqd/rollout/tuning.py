"""How much an engine prepares before its first token to be faster from then on, by the work that its run has for it.

                    start, seconds    a decode step of a small model
eager                     0           bound by the launches of its kernels, some 10 ms
graphs                    a few       the same kernels, launched at once as a CUDA graph
compile                 a minute      fewer kernels, in a graph; a third of that with its cache filled
"""

from __future__ import annotations

import math
from typing import Literal

from rayqd.config import Config
from rayqd.data.plan import first_on_policy_step

Preparation = Literal["eager", "graphs", "compile"]

# Decode steps from which on the preparation is earned back: graphs save about 10 ms a step and take a few seconds,
# the compiler saves some tenths of a millisecond beyond them and takes a minute without its cache.
_STEPS_WORTH_GRAPHS = 300
_STEPS_WORTH_COMPILING = 150_000
_FULL_STRIDE = 8  # between the larger batch sizes that have a graph; a batch is padded up to the next of them


def choose_preparation(config: Config) -> Preparation:
    """Return what `rollout.engine` says, or if that is auto, what takes the least time over the whole run."""
    if config.rollout.engine != "auto":
        return config.rollout.engine
    steps = count_decode_steps(config)
    if steps < _STEPS_WORTH_GRAPHS:
        return "eager"
    return "compile" if steps >= _STEPS_WORTH_COMPILING else "graphs"


def count_decode_steps(config: Config) -> int:
    """Return the most forward passes of one token a sequence that a rollout worker of the run can come to."""
    rounds = math.ceil(_sequences_a_call(config) / config.rollout.max_concurrent)
    num_steps = config.learner.steps - first_on_policy_step(config)
    return num_steps * rounds * config.rollout.max_new_tokens


def most_sequences(config: Config) -> int:
    """Return the most sequences that a rollout worker of the run decodes at a time."""
    return min(_sequences_a_call(config), config.rollout.max_concurrent)


def graph_sizes(max_sequences: int) -> list[int]:
    """Return the batch sizes that get a CUDA graph: 1, 2, 4, multiples of 8, and the largest that can occur."""
    small = [size for size in (1, 2, 4) if size < max_sequences]
    return [*small, *range(_FULL_STRIDE, max_sequences, _FULL_STRIDE), max_sequences]


def _sequences_a_call(config: Config) -> int:
    """Of a step's on-policy sequences, a worker's share; there is one call a step, and calls wait for each other."""
    on_policy = math.ceil(config.distill.lmbda * config.learner.batch_size)
    return max(1, math.ceil(on_policy / config.rollout.num_workers))
