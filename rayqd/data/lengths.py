"""How many tokens rows have, in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def describe_lengths(lengths: Iterable[int]) -> str:
    """Format a histogram in powers of two: `tokens of a row: 65 to 128: 3 rows, 129 to 256: 40 rows`."""
    counts = Counter(max(length - 1, 0).bit_length() for length in lengths)
    parts = [f"{_range(bits)}: {counts[bits]:,} row{'s' if counts[bits] > 1 else ''}" for bits in sorted(counts)]
    return f"tokens of a row: {', '.join(parts)}"


def _range(bits: int) -> str:
    """Return the lengths n for which n - 1 takes `bits` bits."""
    last = 1 << bits
    first = last // 2 + 1
    return f"{first:,} to {last:,}" if first < last else f"{last:,}"
