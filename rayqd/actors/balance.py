"""Splitting sequences so that no worker waits long for the slowest."""

from __future__ import annotations

from collections.abc import Sequence


def split_evenly(sizes: Sequence[int], num_shares: int) -> list[list[int]]:
    """Return indices of `sizes` in shares of about the same total: longest first, each to the least loaded share."""
    loads = [0] * num_shares
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[index]
        shares[rank].append(index)
    return shares
