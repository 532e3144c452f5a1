"""How many rows of logits are held, and how many are worked on, at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from rayqd.errors import ConfigError

# Logits held at a time. On a CPU more rows a chunk make the matrix products no faster from about 500 on.
_CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
_MAX_CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}
# Rows that a GPU's matrix product gives to a thread block; a chunk of another number leaves some of them half empty.
_TILE_ROWS = 128
# Elements of a float32 block that the passes after the products run over, of which four or five are alive. On a CPU
# large ones leave the caches, small ones cost more calls; of 2^17 to 2^21 elements 2^19 were the fastest.
_BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


def chunk_size(
    wanted: int | None, vocab_size: int, bytes_per_id: int, device: torch.device, num_tokens: int | None = None
) -> int:
    """Return how many tokens' logits to hold at a time, at `bytes_per_id` for each id; `wanted` if given.

    Where `num_tokens` is known the chunks get as even as whole tiles of a product allow, instead of a short last one.
    Raises ConfigError for a `wanted` below 1.
    """
    if wanted is not None:
        if wanted < 1:
            raise ConfigError(f"chunk_tokens={wanted} is below 1; none lets the memory of the device decide")
        return wanted
    kind = _kind(device)
    most = max(1, min(_CHUNK_BYTES[kind] // (vocab_size * bytes_per_id), _MAX_CHUNK_TOKENS[kind]))
    if not num_tokens:
        return most
    even = math.ceil(num_tokens / math.ceil(num_tokens / most))
    return min(most, math.ceil(even / _TILE_ROWS) * _TILE_ROWS)


def row_blocks(num_rows: int, vocab_size: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of at most a cache's worth of rows, in order."""
    return slices(num_rows, max(1, _BLOCK_ELEMENTS[_kind(device)] // max(1, vocab_size)))


def slices(num_rows: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` rows, in order; the last may be shorter."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "cuda"
