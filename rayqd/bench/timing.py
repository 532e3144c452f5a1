"""Wall time and peak memory of a piece of work, measured the same way everywhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 2  # compilers, caches, allocator


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Wall time over several repeats, each waited for to its end."""

    seconds: float  # median
    fastest_seconds: float
    slowest_seconds: float
    peak_bytes: int | None  # allocated on the GPU at the worst moment, weights included; None on a CPU


def measure(work: Callable[[], object], device: torch.device, *, repeats: int) -> Timing:
    """Run `work` WARM_UP times unmeasured, then `repeats` times."""
    for _ in range(WARM_UP):
        work()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return Timing(
        seconds=statistics.median(seconds),
        fastest_seconds=min(seconds),
        slowest_seconds=max(seconds),
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
