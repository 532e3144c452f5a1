"""A run whose payloads do not fit into Ray's object store says so before its first step, and what to lower."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayqd.config import Config
from rayqd.data.example_set import ExampleSet
from rayqd.driver import object_store
from rayqd.driver.object_store import describe_store, estimate_held
from rayqd.types import Example

WIDTH, VOCABULARY = 1000, 50_000


def config(**sections: Any) -> Config:
    given = {"learner": {"batch_size": 8}, "distill": {"lmbda": 0.25}, "rollout": {"max_new_tokens": 400}}
    return Config(**{**given, "model": {"dtype": "bfloat16"}, **sections})


# A step has 8 sequences, 2 of them of 400 tokens at most, the data's of 200 on average: 8 · (0.75 · 200 + 0.25 · 400).
TOKENS = 2000


@pytest.mark.parametrize(
    ("sections", "prefetched", "steps", "bytes_a_token"),
    [
        ({}, 0, 1, 2 * WIDTH),
        ({"model": {"dtype": "float32"}}, 2, 3, 4 * WIDTH),
        ({"teacher": {"payload": "logits"}}, 0, 1, 2 * VOCABULARY),
        ({"teacher": {"payload": "topk", "top_k": 64}}, 0, 1, 8 * 64),
    ],
)
def test_what_is_held_at_once_is_estimated(sections: Any, prefetched: int, steps: int, bytes_a_token: int) -> None:
    held = estimate_held(config(**sections), [100, 300], [50, 70], prefetched, WIDTH, VOCABULARY)
    assert (held.steps, held.bytes_a_step) == (steps, bytes_a_token * TOKENS)
    hidden = (4 if held.steps == 3 else 2) * WIDTH
    assert held.total == steps * bytes_a_token * TOKENS + 120 * hidden


def rows(*lengths: int) -> ExampleSet:
    one = np.zeros(1, np.int32)
    examples = [Example(row=0, prompt_ids=one, completion_ids=np.zeros(length, np.int32)) for length in lengths]
    keys = np.arange(len(examples), dtype=np.uint64)
    return ExampleSet(examples=examples, keys=keys, source="rows", num_rows=len(examples), left_out=())


def test_a_store_without_room_is_one_line_that_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_read_sizes", lambda _: (WIDTH, VOCABULARY))
    # staleness 2 and two steps ahead: 5 · 2000 · 2000 bytes, and 120 · 2000 of the held-out rows
    asked = config(rollout={"max_new_tokens": 400, "max_staleness": 2})
    needed = 5 * TOKENS * 2 * WIDTH + 120 * 2 * WIDTH
    assert describe_store(asked, rows(100, 300), rows(50, 70), 2, needed) == ""
    told = describe_store(asked, rows(100, 300), rows(50, 70), 2, needed - 1)
    assert told.startswith("Ray's object store has 0.0 GiB, and 5 steps of payloads and the held-out rows' take 0.0:")
    assert "lower rollout.max_staleness, teacher.prefetch_steps, learner.batch_size or eval.num_rows" in told
    assert told.endswith("or take teacher.payload=topk")
    assert "\n" not in told
