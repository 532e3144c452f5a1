"""A run that was ended while the benchmarks of its last step ran does them when it goes on, and no others again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayqd.config import Config
from rayqd.events import EvalEvent, ReadyEvent, ReportedEvent, to_json
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.worker import LearnerWorker
from rayqd.runs.paths import METRICS
from rayqd.types import ScoredRollout
from tests.evals.task_files import CHOICE
from tests.learner.fake_feed import FakeFeed, NodeLostError, scored_rows

STEPS = 2


class LosingFeed(FakeFeed):
    def report(self, event: ReportedEvent) -> None:
        if isinstance(event, EvalEvent) and event.step == STEPS:
            raise NodeLostError
        super().report(event)


@pytest.fixture
def rows(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    return scored_rows(tiny_model, make_rollouts((5, 9), (7, 3)))


def resume(config: Config, feed: FakeFeed) -> tuple[bool, list[EvalEvent]]:
    """Whether the learner says that it measures again, and what it then measures of the last step."""
    LearnerWorker(config, feed, SingleProcess(), node="here").run()
    (ready,) = [event for event in feed.events if isinstance(event, ReadyEvent)]
    assert ready.step == STEPS
    return ready.measures_again, [e for e in feed.events if isinstance(e, EvalEvent) and e.step == STEPS]


@pytest.mark.slow
def test_benchmarks_of_the_last_step_that_were_cut_short_are_made_up_for(
    rows: list[ScoredRollout], tiny_config: Callable[..., Config], tmp_path: Path, few_files: None
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "q: ", "choices": ["a", "no", "q"], "answer": 0}) + "\n")
    (tmp_path / "first.yaml").write_text(CHOICE.format(name="first", file=file))
    config = tiny_config(
        model={"dtype": "float32"},
        learner={"steps": STEPS},
        eval={"every": STEPS, "tasks": ["first"], "tasks_dir": tmp_path},
    )
    with pytest.raises(NodeLostError):
        LearnerWorker(config, LosingFeed(rows), SingleProcess(), node="here").run()
    again, measured = resume(config, FakeFeed(rows))
    assert again
    (event,) = measured
    assert [value.name for value in event.fidelity.tasks] == ["first/acc", "first/acc_norm"]
    (config.run_dir / METRICS).write_text(json.dumps(to_json(event, 1.0)) + "\n")
    assert resume(config, FakeFeed(rows)) == (False, [])
