"""Rows of a source tokenized in their order, some of them ahead of who asks, but never more than could be needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from rayqd.data.row_tokenizer import RowTokenizer, TokenizedRows
from rayqd.data.sources import Rows
from rayqd.data.tokenizer_processes import TokenizerProcesses

BATCH_ROWS = 512  # at most; the first batches are smaller, because nobody knows how long rows are
FIRST_BATCH_ROWS = 64
_BATCH_TOKENS = 1 << 17


def tokenize_rows(
    rows: Rows, order: NDArray[np.int64], tokenize: RowTokenizer, room: Callable[[], int]
) -> Generator[tuple[list[int], TokenizedRows]]:
    """Yield the positions of the rows of a batch and what these came to, in `order`.

    `room` says how many rows can be needed at most, those under way included. Many rows are tokenized in processes of
    their own. Raises WorkerError where one of these dies, and ModelError as `RowTokenizer` does.
    """
    pending: deque[tuple[list[int], Future[TokenizedRows]]] = deque()
    start = num_under_way = 0
    size = FIRST_BATCH_ROWS
    with TokenizerProcesses(tokenize, num_rows=min(len(order), room())) as processes:
        while True:
            while len(pending) < processes.num_batches_ahead:
                num_rows = min(size, len(order) - start, room() - num_under_way)
                if num_rows <= 0:
                    break
                indices: list[int] = order[start : start + num_rows].tolist()
                pending.append((indices, processes.submit(rows.fetch_many(indices))))
                start += num_rows
                num_under_way += num_rows
            if not pending:
                return
            indices, future = pending.popleft()
            tokenized = future.result()
            num_under_way -= len(indices)
            size = _choose_size(tokenized, is_alone=processes.num_batches_ahead == 1)
            yield indices, tokenized


def _choose_size(tokenized: TokenizedRows, *, is_alone: bool) -> int:
    """Return how many rows like these make a batch. Whoever works alone makes small ones, and says more often so."""
    tokens_per_row = max(1, len(tokenized.examples.ids) // max(1, len(tokenized.examples)))
    return max(1, min(FIRST_BATCH_ROWS if is_alone else BATCH_ROWS, _BATCH_TOKENS // tokens_per_row))
