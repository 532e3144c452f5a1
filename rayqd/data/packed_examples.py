"""Many examples in a few arrays, which may be files mapped into memory: an `Example` is made when it is asked for.

N examples have T tokens, of which those with a mask of their own have M. They travel as these arrays do: Ray puts them
into shared memory once, and whoever gets them there copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayqd.data.example_sequence import ExampleSequence
from rayqd.types import Example


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedExamples(ExampleSequence):
    """Examples by position."""

    rows: NDArray[np.int64]  # [N] positions in the source
    num_prompt: NDArray[np.int32]  # [N] tokens
    starts: NDArray[np.int64]  # [N + 1] of each example's tokens in `ids`; the last one is T
    ids: NDArray[np.int32] | NDArray[np.uint16]  # [T] prompts and completions, one after the other
    masked_starts: NDArray[np.int64]  # [N + 1] of each example's tokens in `trained`: as many as it has, or none
    trained: NDArray[np.bool_]  # [M]
    teachers: NDArray[np.uint8] | None = None  # [N] which of the run's teachers reads each; None: the first reads all

    @classmethod
    def of(cls, examples: Sequence[Example]) -> PackedExamples:
        """Return copies of `examples`."""
        masks = [np.zeros(0, np.bool_) if example.trained is None else example.trained for example in examples]
        num_tokens = [len(example.prompt_ids) + len(example.completion_ids) for example in examples]
        parts = [part for example in examples for part in (example.prompt_ids, example.completion_ids)]
        return cls(
            rows=np.asarray([example.row for example in examples], dtype=np.int64),
            num_prompt=np.asarray([len(example.prompt_ids) for example in examples], dtype=np.int32),
            starts=starts_of(num_tokens),
            ids=np.concatenate([np.zeros(0, np.int32), *parts], dtype=np.int32),
            masked_starts=starts_of([len(mask) for mask in masks]),
            trained=np.concatenate([np.zeros(0, np.bool_), *masks]),
            teachers=np.asarray([example.teacher for example in examples], dtype=np.uint8),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def example_at(self, position: int) -> Example:
        """Return a copy of one."""
        start, end = int(self.starts[position]), int(self.starts[position + 1])
        middle = start + int(self.num_prompt[position])
        masked, masked_end = int(self.masked_starts[position]), int(self.masked_starts[position + 1])
        return Example(
            row=int(self.rows[position]),
            prompt_ids=np.array(self.ids[start:middle], dtype=np.int32),
            completion_ids=np.array(self.ids[middle:end], dtype=np.int32),
            trained=np.array(self.trained[masked:masked_end]) if masked < masked_end else None,
            teacher=0 if self.teachers is None else int(self.teachers[position]),
        )

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """Tokens of each example, [N]."""
        return np.diff(self.starts)

    def take(self, kept: NDArray[np.bool_]) -> PackedExamples:
        """Return the examples that are `kept`, [N]."""
        if kept.all():
            return self
        num_tokens, num_masked = np.diff(self.starts), np.diff(self.masked_starts)
        return PackedExamples(
            rows=self.rows[kept],
            num_prompt=self.num_prompt[kept],
            starts=starts_of(num_tokens[kept]),
            ids=self.ids[np.repeat(kept, num_tokens)],
            masked_starts=starts_of(num_masked[kept]),
            trained=self.trained[np.repeat(kept, num_masked)],
            teachers=None if self.teachers is None else self.teachers[kept],
        )


def starts_of(lengths: Sequence[int] | NDArray[Any]) -> NDArray[np.int64]:
    """Return where each of N parts starts that lie one after the other, and where the last one ends, [N + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(lengths, dtype=np.int64), dtype=np.int64)])


def count_tokens(examples: Sequence[Example]) -> NDArray[np.int64]:
    """Return the tokens of each example, prompt and completion, [N]."""
    if isinstance(examples, PackedExamples):
        return examples.num_tokens
    return np.asarray([len(e.prompt_ids) + len(e.completion_ids) for e in examples], dtype=np.int64)


def count_trained_tokens(examples: Sequence[Example]) -> int:
    """Return how many tokens of the data's own rows are trained on, all together."""
    if not isinstance(examples, PackedExamples):
        return sum(len(e.completion_ids) if e.trained is None else int(e.trained.sum()) for e in examples)
    is_whole = np.diff(examples.masked_starts) == 0
    return int((examples.num_tokens - examples.num_prompt)[is_whole].sum()) + int(examples.trained.sum())
