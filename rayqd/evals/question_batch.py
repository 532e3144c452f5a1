"""Questions that a model of transformers answers at a time: fewer once memory did not suffice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rayqd.model.out_of_memory import is_out_of_memory, release_memory

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class QuestionBatch:
    """`eval.task_batch_size` of one process, or what is left of it."""

    size: int  # sequences
    can_be_lowered: bool = True  # not where other processes run the same calls of a sharded model
    tell: Callable[[str], None]

    def attempt(self, name: str, run: Callable[[int], T]) -> T:
        """Return what `run` returns for a number of sequences at a time, half as many after each end of memory.

        `name` is the benchmark's. Raises what `run` raises where that is something else, or one alone does not fit.
        """
        while True:
            try:
                return run(self.size)
            except Exception as error:
                if self.size == 1 or not self.can_be_lowered or not is_out_of_memory(error):
                    raise
            release_memory()  # which the error's traceback no longer holds
            before, self.size = self.size, self.size // 2
            self.tell(
                f"{name}: {before} sequences at a time did not fit in memory: from now on {self.size} "
                "(eval.task_batch_size)"
            )
