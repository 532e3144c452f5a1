"""The layers that an export leaves dense, as few entries of a quantization config."""

from __future__ import annotations

import re
from collections.abc import Iterable


def summarize_dense_layers(dense: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """Return `dense` as compressed-tensors' `ignore` takes it, a whole branch of the model as one pattern.

    A branch holds no layer of `quantized`: `re:vision_tower\\..*` for a thousand names. Names alone stay as they are.
    """
    kept = {prefix for name in quantized for prefix in _prefixes(name)}
    entries: dict[str, None] = {}
    for name in dense:
        branch = next((prefix for prefix in _prefixes(name) if prefix not in kept), name)
        entries[name if branch == name else rf"re:{re.escape(branch)}\..*"] = None
    return list(entries)


def _prefixes(name: str) -> list[str]:
    """Return `a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
