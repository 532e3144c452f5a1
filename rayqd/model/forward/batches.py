"""Which rows go through a model together, in one call.

Shapes: a row has its length in tokens. However rows are put together, each gets the states that it would get alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rayqd.model.forward.mode import Batching
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.rotary import frequency_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def batch_rows(
    model: PreTrainedModel, lengths: Sequence[int], max_tokens: int, *, allow_padding: bool = True
) -> list[list[int]]:
    """Split the indices of rows into batches of one call each, of at most `max_tokens`, padding included.

    A longer row is alone. Packed rows keep their order; others are sorted by length. Without `allow_padding` rows that
    are not packed share a batch only where they are of one length.
    """
    mode = mode_of(model)
    if mode.batching is Batching.ALONE:
        return [[i] for i in range(len(lengths))]
    batches: list[list[int]] = []
    for members in _by_class(model, lengths):
        if mode.is_packed:
            own = batch_lengths([lengths[i] for i in members], max_tokens)
            batches += [[members[i] for i in batch] for batch in own]
        else:
            batches += _batch_padded(members, lengths, max_tokens, allow_padding)
    return batches


def batch_lengths(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split the indices of sequences, in order, into batches of at most `max_tokens`; a longer one is alone."""
    batches: list[list[int]] = []
    room = 0
    for i, length in enumerate(lengths):
        if not batches or length > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(i)
        room -= length
    return batches


def _by_class(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Group the rows' indices by what a rotary embedding makes of their lengths."""
    everything = list(range(len(lengths)))
    classify = frequency_class(model)
    if classify is None:
        return [everything]
    ordered = sorted(everything, key=lambda i: classify(lengths[i]))
    return [list(group) for _, group in groupby(ordered, key=lambda i: classify(lengths[i]))]


def _batch_padded(
    members: Sequence[int], lengths: Sequence[int], max_tokens: int, allow_padding: bool
) -> list[list[int]]:
    """Fill batches with rows from the shortest to the longest, which decides how many fit."""
    batches: list[list[int]] = []
    for i in sorted(members, key=lambda i: lengths[i]):
        fits = bool(batches) and (len(batches[-1]) + 1) * lengths[i] <= max_tokens
        if fits and (allow_padding or lengths[batches[-1][-1]] == lengths[i]):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
