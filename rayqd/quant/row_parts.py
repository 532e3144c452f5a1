"""Rows in parts, one a thread, on a CPU: what is done to a weight row by row stays in each core's cache.

Torch would split every operation among the threads, and have them wait for each other after each. On operations this
small the waiting costs more than the work, and far more where another process wants the core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")

# A thread takes no fewer: the calls would cost more than the work.
FEWEST_ROWS = 64


def map_row_parts(function: Callable[[slice], T], num_rows: int) -> list[T]:
    """Return what `function` returns for parts of the rows, in order, as many as torch has threads here.

    Each runs on a thread of its own, on which torch has no others. Gradients are not recorded there; what is written to
    may be inference tensors, as where this is called.
    """
    num_threads = torch.get_num_threads()
    size = max(FEWEST_ROWS, -(-num_rows // num_threads))
    parts = [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
    function = torch.inference_mode(torch.is_inference_mode_enabled())(torch.no_grad()(function))
    if len(parts) == 1:
        return [function(part) for part in parts]
    return list(_threads(num_threads).map(function, parts))


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    """Return threads that live as long as the process: to start some takes as long as to round a layer."""
    started = threading.Barrier(number)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # the first use in a thread takes over what any has set last
        started.wait()

    threads = ThreadPoolExecutor(number, "rows", initializer=begin)
    wait([threads.submit(int) for _ in range(number)])  # each starts a thread, as all others wait for it
    torch.set_num_threads(number)  # part of what a thread sets holds for all
    return threads
