"""Whether a CPU's kernels, which Numba compiles, are worth it for a weight."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

# Numba takes ten seconds to compile them, once for each place that rayqd's files are in, and keeps them there: a job
# that Ray unpacks elsewhere, or a test, on a model of a few such weights would never earn that back.
FEWEST_WEIGHTS = 1 << 16


def are_worth_it(weight: Tensor) -> bool:
    """Return whether they are: on a CPU, for a weight of some size, where Numba is installed; vLLM brings it."""
    return weight.is_cpu and weight.numel() >= FEWEST_WEIGHTS and find_spec("numba") is not None
