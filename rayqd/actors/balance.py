"""Splitting sequences so that nobody waits for the slowest."""

from __future__ import annotations

from collections.abc import Sequence


def balanced_shares(sizes: Sequence[int], num_shares: int) -> list[list[int]]:
    """Indices of `sizes` in `num_shares` shares of about the same total: longest first, each to the least loaded."""
    loads = [0] * num_shares
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[index]
        shares[rank].append(index)
    return shares
