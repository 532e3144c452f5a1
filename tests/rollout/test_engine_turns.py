"""vLLM's engine under calls beside each other: a step that one of them makes is for all, and each gets its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from rayqd.rollout.turns import Turns
from rayqd.rollout.vllm import VLLMEngine


@dataclass
class CountingCore:
    """Stands for vLLM's engine: each step is a token of every request, of which a prompt's first id says how many."""

    left: dict[str, int] = field(default_factory=dict[str, int])
    aborted: list[str] = field(default_factory=list[str])
    num_steps: int = 0
    at_step: dict[int, threading.Event] = field(default_factory=dict[int, threading.Event])  # which waits for that
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        assert name not in self.left
        with self.lock:
            self.left[name] = prompt["prompt_token_ids"][0]

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Any]:
        assert self.lock.acquire(blocking=False), "two threads are at the engine"
        self.num_steps += 1
        if event := self.at_step.get(self.num_steps):
            assert event.wait(10)
        self.left = {name: tokens - 1 for name, tokens in self.left.items()}
        outputs = [SimpleNamespace(request_id=name, finished=not tokens) for name, tokens in self.left.items()]
        self.left = {name: tokens for name, tokens in self.left.items() if tokens}
        self.lock.release()
        return outputs

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names
        for name in names:
            self.left.pop(name, None)


def made() -> tuple[Any, CountingCore]:
    """An engine of ours around one of those."""
    core, engine = CountingCore(), object.__new__(VLLMEngine)
    llm: Any = SimpleNamespace(llm_engine=core)
    engine._llm, engine._turns, engine._finished, engine._num_calls = llm, Turns(), {}, 0
    engine.on_progress = lambda: None
    return engine, core


def prompts(*lengths: int) -> list[Any]:
    return [np.array([length], np.int32) for length in lengths]


def run(engine: Any, *lengths: int) -> list[str]:
    return [output.request_id for output in engine.run(prompts(*lengths), [None] * len(lengths))]


def test_a_call_alone_makes_as_many_steps_as_its_longest_has_tokens() -> None:
    engine, core = made()
    assert run(engine, 3, 1, 2) == ["1-0", "1-1", "1-2"]
    assert run(engine, 2) == ["2-0"]
    assert core.num_steps == 3 + 2
    assert (core.aborted, engine._finished) == ([], {})


def test_a_short_call_is_back_long_before_the_long_one_that_it_came_beside() -> None:
    engine, core = made()
    core.at_step = {10: threading.Event(), 60: threading.Event()}
    with ThreadPoolExecutor(2) as threads:
        long = threads.submit(run, engine, 200, 190)
        while core.num_steps < 10:
            pass
        short = threads.submit(run, engine, 5, 3)
        while engine._turns._next_ticket < 12:  # it has asked for its turn
            pass
        core.at_step[10].set()
        assert short.result(10) == ["2-0", "2-1"]
        assert not long.done()
        core.at_step[60].set()
        assert long.result(10) == ["1-0", "1-1"]
    assert core.num_steps == 200  # none of them twice
    assert engine._finished == {}


def test_a_call_that_ends_early_leaves_nothing_in_the_engine_and_the_others_alone() -> None:
    engine, core = made()
    parts = engine._finish(prompts(1, 50), [None, None])
    assert [index for index, _ in next(parts)] == [0]
    other = engine._finish(prompts(4), [None])
    assert next(other)[0][1].request_id == "2-0"
    parts.close()
    assert core.aborted == ["1-1"]
    assert (core.left, engine._finished) == ({}, {})
