"""What an engine writes, checked before anybody reads it: what is not what was asked for is asked for once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rayqd.errors import WorkerError
from rayqd.rollout.engine import Completion, SamplingRequest

Write = Callable[[Sequence[SamplingRequest]], Sequence[Completion]]


def write_checked(
    write: Write, requests: Sequence[SamplingRequest], vocab_size: int | None, num_top_ids: int
) -> list[tuple[Completion, str]]:
    """Return a completion for each request, and what is wrong with it, still; "" where nothing is.

    `vocab_size`, if it is known, bounds their ids. Raises WorkerError where `write` twice returns another number.
    """
    written = _write_all(write, requests)
    faults = [_find_fault(*pair, vocab_size, num_top_ids) for pair in zip(requests, written, strict=True)]
    again = [i for i, fault in enumerate(faults) if fault]
    if again:
        second = _write_all(write, [requests[i] for i in again])
        for i, completion in zip(again, second, strict=True):
            written[i], faults[i] = completion, _find_fault(requests[i], completion, vocab_size, num_top_ids)
    return list(zip(written, faults, strict=True))


def _write_all(write: Write, requests: Sequence[SamplingRequest]) -> list[Completion]:
    written = list(write(requests))
    if len(written) != len(requests):
        written = list(write(requests))
    if len(written) == len(requests):
        return written
    raise WorkerError(f"the engine wrote {len(written)} completions for {len(requests)} prompts, twice")


def _find_fault(request: SamplingRequest, written: Completion, vocab_size: int | None, num_top_ids: int) -> str:
    """Say in a few words how `written` is not what was asked for; "" where it is."""
    token_ids, top_ids = written.token_ids, written.top_ids
    if not len(token_ids):
        return "the engine wrote nothing"
    if len(token_ids) > request.max_new_tokens:
        return f"the engine wrote {len(token_ids)} tokens where {request.max_new_tokens} were asked for"
    for ids in (token_ids, top_ids):
        if ids is not None and not (ids.min() >= 0 and (vocab_size is None or ids.max() < vocab_size)):
            return f"the engine wrote ids from {ids.min()} to {ids.max()}, and the vocabulary has {vocab_size}"
    if num_top_ids and (top_ids is None or top_ids.shape != (len(token_ids), num_top_ids)):
        return f"the engine named the {num_top_ids} likeliest ids of other tokens than it wrote"
    return ""
