"""Examples of several sources as one sequence."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, islice

import numpy as np

from rayqd.data.example_sequence import ExampleSequence
from rayqd.data.example_set import ExampleSet
from rayqd.data.left_out import MAX_FIRST, LeftOut, Reason
from rayqd.types import Example


class JoinedExamples(ExampleSequence):
    """The examples of several sources, those of the first before those of the second; nothing is copied."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self._parts = tuple(parts)
        self._ends = list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def example_at(self, position: int) -> Example:
        """Return one, as its source has it."""
        part = bisect_right(self._ends, position)
        return self._parts[part][position - (self._ends[part - 1] if part else 0)]

    def __iter__(self) -> Iterator[Example]:
        return chain.from_iterable(self._parts)


def join(parts: Sequence[ExampleSet]) -> ExampleSet:
    """Return the examples of all `parts`, with what was left out of each; a single one as it is."""
    if len(parts) == 1:
        return parts[0]
    return ExampleSet(
        examples=JoinedExamples([part.examples for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        source=", ".join(part.source for part in parts),
        num_rows=sum(part.num_rows for part in parts),
        left_out=_add_left_out(parts),
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        shapes=tuple(dict.fromkeys(shape for part in parts for shape in part.shapes)),
        joined=tuple(parts),
    )


def by_weight(training: ExampleSet, weights: Sequence[float]) -> Iterator[tuple[int, Example]]:
    """Yield each example once, with its source: those of each in their order, and the sources by their `weights`.

    So the first ones, however many, are like what a run trains on. Where a source has no more, the others go on.
    """
    due = (_due(source, *of) for source, of in enumerate(zip(training.sizes, weights, strict=True)))
    for _, source, draw in heapq.merge(*due):
        yield source, training.parts[source].examples[draw]


def _due(source: int, num_examples: int, weight: float) -> Iterator[tuple[float, int, int]]:
    return (((draw + 0.5) / weight, source, draw) for draw in range(num_examples))


def _add_left_out(parts: Sequence[ExampleSet]) -> tuple[LeftOut, ...]:
    counts: Counter[Reason] = Counter()
    for part in parts:
        counts.update({each.reason: each.num_rows for each in part.left_out})
    firsts = {
        reason: chain.from_iterable(each.first for part in parts for each in part.left_out if each.reason is reason)
        for reason in Reason
    }
    return tuple(
        LeftOut(reason=reason, num_rows=counts[reason], first=tuple(islice(firsts[reason], MAX_FIRST)))
        for reason in Reason
        if counts[reason]
    )
