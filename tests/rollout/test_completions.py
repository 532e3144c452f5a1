"""What an engine writes against its orders is asked for once more, and then told; what is as asked stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rayqd.errors import WorkerError
from rayqd.rollout.completions import write_checked
from rayqd.rollout.engine import Completion, SamplingRequest
from rayqd.types import IntArray

REQUESTS = [
    SamplingRequest(
        prompt_ids=np.array([seed], np.int32), seed=seed, temperature=1.0, min_new_tokens=1, max_new_tokens=4
    )
    for seed in range(3)
]
SOUND: IntArray = np.array([5, 9, 2], np.int32)
FAULTS = [
    ([], "the engine wrote nothing"),
    ([1, 2, 3, 4, 5], "the engine wrote 5 tokens where 4 were asked for"),
    ([1, 10], "the engine wrote ids from 1 to 10, and the vocabulary has 10"),
    ([3, -1], "the engine wrote ids from -1 to 3, and the vocabulary has 10"),
]


class Engine:
    """Writes `first` for the second request, and `second` when it is asked again."""

    def __init__(self, first: IntArray, second: IntArray = SOUND) -> None:
        self.answers = [first, second]
        self.asked: list[list[int]] = []

    def write(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        self.asked.append([request.seed for request in requests])
        answer = self.answers[len(self.asked) - 1]
        return [Completion(token_ids=answer if request.seed == 1 else SOUND, is_cut=False) for request in requests]


@pytest.mark.parametrize(("ids", "fault"), FAULTS)
def test_a_fault_that_stays_is_told_and_the_others_are_written_once(ids: list[int], fault: str) -> None:
    engine = Engine(np.array(ids, np.int32), np.array(ids, np.int32))
    completions = write_checked(engine.write, REQUESTS, 10, 0)
    assert [fault for _, fault in completions] == ["", fault, ""]
    assert completions[1][0].token_ids.tolist() == ids
    assert engine.asked == [[0, 1, 2], [1]]


@pytest.mark.parametrize(("ids", "fault"), FAULTS)
def test_what_is_right_the_second_time_counts(ids: list[int], fault: str) -> None:
    del fault
    engine = Engine(np.array(ids, np.int32))
    completions = write_checked(engine.write, REQUESTS, 10, 0)
    assert [(fault, c.token_ids.tolist()) for c, fault in completions] == [("", [5, 9, 2])] * 3


def test_nothing_is_asked_twice_of_an_engine_that_does_as_it_is_told() -> None:
    engine = Engine(SOUND)
    write_checked(engine.write, REQUESTS, 10, 0)
    assert engine.asked == [[0, 1, 2]]


@pytest.mark.parametrize("shape", [(3, 1), (2, 2)])
def test_likeliest_ids_of_other_tokens_are_a_fault(shape: tuple[int, int]) -> None:
    for ids, fault in [(shape, "the engine named the 2 likeliest ids of other tokens than it wrote"), ((3, 2), "")]:
        written = Completion(token_ids=SOUND, is_cut=False, top_ids=np.zeros(ids, np.int32))
        assert write_checked(lambda _, written=written: [written], REQUESTS[:1], 10, 2) == [(written, fault)]


def test_another_number_of_completions_is_asked_again_and_then_ends_the_run() -> None:
    calls: list[int] = []

    def write(requests: Sequence[SamplingRequest]) -> list[Completion]:
        calls.append(len(requests))
        return [Completion(token_ids=SOUND, is_cut=False)] * 2

    with pytest.raises(WorkerError, match=r"^the engine wrote 2 completions for 3 prompts, twice$"):
        write_checked(write, REQUESTS, 10, 0)
    assert calls == [3, 3]
