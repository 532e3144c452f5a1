"""A stop keeps the last step that was done, whatever the learner is doing, and lets no other one begin."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rayqd.errors import RunError
from rayqd.learner.benchmarks import StudentBenchmarks
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.checkpointer import Checkpointer
from rayqd.learner.evaluations import Evaluations
from rayqd.learner.learner import Learner
from rayqd.learner.loop import train
from rayqd.model.load import load_model
from rayqd.model.student import Student
from rayqd.teacher.forward import Teacher
from rayqd.types import ScoredRollout
from tests.example_events import fidelity
from tests.learner.fake_feed import FakeFeed


@pytest.fixture
def batch(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    rollouts = make_rollouts((5, 9), (7, 3))
    payloads = Teacher(load_model(tiny_model, "float32"), 8192).hidden(rollouts)
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]


@pytest.fixture
def start(tiny_model: Path, tiny_config: Any, tmp_path: Path) -> Iterator[Any]:
    """A function that trains in a thread of its own; returns learner, checkpoints and thread."""
    started: list[tuple[Checkpointer, threading.Thread]] = []

    def run(feed: FakeFeed) -> tuple[Learner, Checkpoints, threading.Thread]:
        config = tiny_config(model={"dtype": "float32"}, checkpoint={"every": 100})
        student = Student.load(tiny_model, config)
        learner = Learner(student, student.head, config)
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
        checkpointer = Checkpointer(learner, checkpoints, Evaluations(config))
        benchmarks = StudentBenchmarks(config, learner, feed)
        options: dict[str, Any] = {"evaluate": lambda: None, "benchmarks": benchmarks}
        thread = threading.Thread(target=train, args=(learner, feed, checkpointer, config), kwargs=options, daemon=True)
        started.append((checkpointer, thread))
        thread.start()
        return learner, checkpoints, thread

    yield run
    for checkpointer, thread in started:
        if thread.is_alive():  # a process may not end while torch is at work in it
            checkpointer.go_on()
            thread.join(60)


@pytest.mark.slow
def test_a_stop_while_a_step_is_being_computed_keeps_the_one_before(start: Any, batch: list[ScoredRollout]) -> None:
    feed = FakeFeed(batch)
    stopped = threading.Event()
    weights: dict[str, Tensor] = {}

    def stop() -> None:
        weights.update({name: t.clone() for name, t in learner.student.state_dict().items()})
        assert feed.stop() == 2
        stopped.set()

    begin = threading.Event()
    feed.at_batch[0] = begin.wait  # until `learner` has a value
    feed.at_batch[2] = lambda: threading.Thread(target=stop, daemon=True).start()
    learner, checkpoints, thread = start(feed)
    begin.set()
    assert stopped.wait(60)
    thread.join(2)
    assert thread.is_alive()  # it waits before the weights of step 3, for good
    assert "step 3" not in feed.log
    assert checkpoints.steps() == [2]
    kept = load_checkpoint(checkpoints.path(2))["student"]
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in kept)


def test_a_stop_while_weights_are_published_waits_until_that_step_is_whole(
    start: Any, batch: list[ScoredRollout]
) -> None:
    feed = FakeFeed(batch)
    kept: list[int] = []
    begun = threading.Event()
    stopping = threading.Thread(target=lambda: kept.append(feed.stop()), daemon=True)

    def publishing() -> None:
        stopping.start()
        begun.set()
        stopping.join(0.2)
        assert kept == []
        feed.log.append("published")

    feed.at_publish[1] = publishing
    _, checkpoints, _ = start(feed)
    assert begun.wait(60)
    stopping.join(60)
    assert kept == [1]
    assert "published" in feed.log
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize("adapter", [{}, {"kind": "none"}])
def test_a_checkpoint_written_while_benchmarks_run_is_whole(
    adapter: dict[str, Any],
    batch: list[ScoredRollout],
    tiny_model: Path,
    tiny_config: Any,
    tmp_path: Path,
) -> None:
    config = tiny_config(model={"dtype": "float32"}, adapter=adapter)
    checkpoints, evaluations = Checkpoints(tmp_path / "checkpoints", keep=2), Evaluations(config)

    def make() -> tuple[Learner, Checkpointer]:
        student = Student.load(tiny_model, config)
        learner = Learner(student, student.head, config)
        return learner, Checkpointer(learner, checkpoints, evaluations)

    learner, checkpointer = make()
    with checkpointer.step(1):
        learner.step(0, batch, sum(each.rollout.num_loss_tokens for each in batch))
    outside = learner.state_dict()
    stopping = threading.Thread(target=checkpointer.stop, daemon=True)
    with learner.student.as_exported(), learner.student.with_plain_layers():
        stopping.start()
        stopping.join(60)
        checkpointer.go_on()
    resumed, again = make()
    assert again.resume() == 1
    assert again.remarks == []
    for name, tensors in outside.items():
        found = resumed.state_dict()[name]
        assert tensors
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_a_stop_after_the_last_step_finds_its_checkpoint_there(start: Any, batch: list[ScoredRollout]) -> None:
    feed = FakeFeed(batch)
    _, checkpoints, thread = start(feed)
    thread.join(60)
    saved = checkpoints.path(4).stat().st_mtime_ns
    assert feed.stop() == 4
    assert checkpoints.path(4).stat().st_mtime_ns == saved


@pytest.mark.slow
def test_a_stop_while_the_best_weights_are_written_keeps_none_that_are_not_there(
    tiny_model: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(model={"dtype": "float32"}, eval={"every": 1}, checkpoint={"best": "kl_to_teacher"})
    student = Student.load(tiny_model, config)
    checkpoints, evaluations = Checkpoints(tmp_path / "checkpoints", keep=2), Evaluations(config)
    learner = Learner(student, student.head, config)
    checkpointer = Checkpointer(learner, checkpoints, evaluations)
    stopping = threading.Thread(target=checkpointer.stop, daemon=True)
    save_best = checkpoints.save_best

    def find_missing() -> list[int]:
        kept = Evaluations(config)
        for step in checkpoints.steps():
            kept.load(checkpoints.path(step))
        return [kept.best.step] if kept.best and kept.best.step not in checkpoints.best_steps() else []

    def save_while_stopping(step: int, tensors: dict[str, dict[str, Tensor]]) -> Path:
        missing.append(find_missing())
        stopping.start()
        stopping.join(1)
        missing.append(find_missing())  # where the process is killed now
        return save_best(step, tensors)

    missing: list[list[int]] = []
    for step, kl in ((1, 0.5), (2, 0.4)):
        learner.before_update()
        with checkpointer.step(step):
            pass
        if step == 2:
            monkeypatch.setattr(checkpoints, "save_best", save_while_stopping)
        checkpointer.add_evaluation(fidelity(kl))
    stopping.join(60)
    assert missing == [[], []]
    assert find_missing() == []
    assert checkpoints.steps() == [2]
    checkpointer.go_on()


def test_a_stop_before_the_first_step_has_nothing_to_keep(start: Any, batch: list[ScoredRollout]) -> None:
    feed = FakeFeed(batch)
    kept: list[int] = []
    done = threading.Event()

    def stop() -> None:
        kept.append(feed.stop())
        done.set()

    feed.at_batch[0] = stop
    _, checkpoints, _ = start(feed)
    assert done.wait(60)
    assert kept == [0]
    assert checkpoints.steps() == []


def test_a_checkpoint_of_another_model_says_what_differs(
    start: Any, batch: list[ScoredRollout], tiny_config: Any
) -> None:
    learner, checkpoints, thread = start(FakeFeed(batch))
    thread.join(60)
    state = learner.state_dict()
    name = next(iter(state["student"]))
    state["student"][name] = torch.zeros(3, 5)
    checkpoints.save(9, state)
    with pytest.raises(RunError, match=rf"step-000009 is of another model: {re.escape(name)} has the shape \[3, 5\] "):
        Checkpointer(learner, checkpoints, Evaluations(tiny_config())).resume()
