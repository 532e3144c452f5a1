"""Tokens that go through a model at a time: as many as a setting allows, and fewer once memory did not suffice.

Where rows share a call changes no result, so what ran out of memory is done again in smaller parts. Memory that one row
alone does not fit in is an error, with the settings that would make room.
"""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from rayqd.errors import WorkerError
from rayqd.model.hidden_states import batch_by_tokens
from rayqd.model.out_of_memory import is_out_of_memory, release_memory
from rayqd.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
_MAX_ERROR_CHARACTERS = 120


def log_warning(text: str) -> None:
    """Warn in this process's log."""
    logging.getLogger(__name__).warning(text)


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What was computed, which may be None."""

    result: T


@dataclass(slots=True, kw_only=True)
class TokenLimit:
    """The limit of one model in one process."""

    tokens: int
    setting: str  # where `tokens` comes from
    advice: str  # what makes room for a row
    can_be_lowered: bool = True  # not where other processes wait for the same calls of a sharded model
    tell: Callable[[str], None] = log_warning

    def lower_after(self, error: Exception, lengths: Sequence[int]) -> None:
        """Halve the limit after rows of `lengths` tokens, in one call, ended in `error`.

        Raises the error itself where memory is not what it is about, and WorkerError for a row that was alone.
        """
        if not is_out_of_memory(error):
            raise error
        words = textwrap.shorten(" ".join(str(error).split()), _MAX_ERROR_CHARACTERS, placeholder=" ...")
        if len(lengths) == 1 or not self.can_be_lowered:
            rows = f"a row of {lengths[0]:,} tokens" if len(lengths) == 1 else f"{sum(lengths):,} tokens"
            raise WorkerError(f"{rows} did not fit in memory ({words}): {self.advice}")
        self.lower_to(sum(lengths) // 2, f"{sum(lengths):,} tokens did not fit in memory ({words})")

    def attempt(self, run: Callable[[], T], lengths: Sequence[int]) -> Done[T] | None:
        """Return what `run` returns; None where it ended without memory, and the limit is lower now.

        `lengths` are those of the rows that went together when it ended. Raises as `lower_after`.
        """
        try:
            return Done(run())
        except RuntimeError as error:  # torch's are
            self.lower_after(error, lengths)
        release_memory()  # which the error's traceback no longer holds
        return None

    def lower_to(self, tokens: int, reason: str) -> None:
        """Take fewer tokens at a time from now on, and say so."""
        self.tokens = max(1, tokens)
        self.tell(f"{reason}: from now on {self.tokens:,} at a time, without a change of any result ({self.setting})")


def run_batches(
    model: PreTrainedModel, rollouts: Sequence[Rollout], limit: TokenLimit, run: Callable[[list[int]], T]
) -> Iterator[tuple[list[int], T]]:
    """Yield the indices of each batch of `rollouts` with what `run` returns for it; batches that did not fit in halves.

    Raises as `TokenLimit.lower_after`.
    """
    waiting = batch_by_tokens(model, rollouts, limit.tokens)
    while waiting:
        batch = waiting[0]
        done = limit.attempt(partial(run, batch), [rollouts[i].num_tokens for i in batch])
        if done is not None:
            yield waiting.pop(0), done.result
            continue
        rest = [i for batch in waiting for i in batch]
        waiting = [[rest[i] for i in b] for b in batch_by_tokens(model, [rollouts[i] for i in rest], limit.tokens)]
