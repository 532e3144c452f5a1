"""What a run has of one source, or of several joined: the examples that were kept, and what was left out on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayqd.data.left_out import LeftOut, Reason
from rayqd.types import Example, IntArray

Keys = NDArray[np.uint64]  # of rows, by `row_key`


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningText:
    """A text whose perplexity is measured, and how."""

    token_ids: IntArray  # [N]
    window: int  # tokens that a model sees at a time
    stride: int  # by which the window moves on


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleSet:
    """What was kept of a source, in the order in which it was looked at, and what was left out on the way."""

    examples: Sequence[Example]
    keys: Keys = field(repr=False)  # [N] of the examples' rows
    source: str  # path, or id and split
    num_rows: int  # of the source, looked at or not
    left_out: tuple[LeftOut, ...]  # of the rows looked at
    remarks: tuple[str, ...] = ()  # what the user should know of it besides, a line each
    shapes: tuple[str, ...] = ()  # as what the rows were read
    joined: tuple[ExampleSet, ...] = ()  # of several sources: what was kept of each, in their order
    text: RunningText | None = None  # eval.text, beside the rows that are held out

    @property
    def parts(self) -> tuple[ExampleSet, ...]:
        """Return what was kept of each source: of a single one, all of it."""
        return self.joined or (self,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many examples there are of each source."""
        return tuple(len(part.examples) for part in self.parts)

    @property
    def num_duplicates(self) -> int:
        """Examples whose row is that of an earlier one, but for white space and case."""
        return len(self.keys) - len(np.unique(self.keys))

    def num_left_out(self, reason: Reason) -> int:
        """Count the rows looked at that are not used for `reason`."""
        return sum(left_out.num_rows for left_out in self.left_out if left_out.reason is reason)
