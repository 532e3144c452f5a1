"""The weights that were best are exported, and training ends where nothing is gained; wherever a run was disturbed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from rayqd.config import Config, differences
from rayqd.config.sections import CheckpointConfig
from rayqd.errors import ConfigError
from rayqd.events import EvalEvent, FinishedEvent, NoticeEvent, ReadyEvent
from rayqd.export.compressed_tensors import read_quantized
from rayqd.learner.checkpoint import load_checkpoint
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.evaluations import Evaluations
from rayqd.learner.worker import LearnerWorker
from rayqd.metrics.catalogue import METRICS
from rayqd.metrics.fidelity import Fidelity
from rayqd.model.student import Student
from rayqd.model.wire import from_wire, to_wire
from rayqd.types import HiddenPayload, ScoredRollout
from tests.learner.fake_feed import FakeFeed, NodeLostError, scored_rows


@pytest.fixture
def rows(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    return scored_rows(tiny_model, make_rollouts((5, 9), (17, 3), (7, 3)))


@pytest.fixture
def make_config(tiny_config: Any) -> Any:
    """Seven steps at a rate that does not fall."""

    def make(patience: int = 0, best: str | None = "kl_to_teacher", every: int = 3, **sections: Any) -> Config:
        return tiny_config(
            **{
                "model": {"dtype": "float32"},
                "learner": {"steps": 7, "lr": 0.01, "schedule": "constant", "warmup_ratio": 0.0},
                "eval": {"every": 1, "patience": patience},
                "checkpoint": {"every": every, "best": best},
                **sections,
            }
        )

    return make


class MisleadingFeed(FakeFeed):
    """From the fifth step on the teacher says the opposite, so that the student gets worse."""

    def share(self, step: int) -> list[ScoredRollout]:
        return [_turn(row) for row in super().share(step)] if step >= 4 else super().share(step)


def _turn(row: ScoredRollout) -> ScoredRollout:
    payload = row.payload
    assert isinstance(payload, HiddenPayload)
    return replace(row, payload=HiddenPayload(hidden=to_wire(-from_wire(payload.hidden))))


def run(config: Config, feed: FakeFeed) -> FakeFeed:
    LearnerWorker(config, feed, SingleProcess(), node="here").run()
    return feed


def run_until_lost(config: Config, feed: FakeFeed, step: int) -> FakeFeed:
    def lose() -> None:
        raise NodeLostError

    feed.at_batch[step] = lose
    with pytest.raises(NodeLostError):
        run(config, feed)
    return feed


def by_step(*feeds: FakeFeed) -> dict[int, float]:
    """The student's KL after each step."""
    events = [event for feed in feeds for event in feed.events if isinstance(event, EvalEvent) and event.step]
    return {event.step: event.fidelity.kl_to_teacher for event in events}


def end_of(feed: FakeFeed) -> FinishedEvent:
    (event,) = [event for event in feed.events if isinstance(event, FinishedEvent)]
    return event


def exported_files(config: Config) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (config.run_dir / "export").glob("*.safetensors")}


def best_names(config: Config) -> list[str]:
    return sorted(path.name for path in (config.run_dir / "checkpoints").glob("best-*"))


@pytest.mark.slow
def test_the_best_weights_are_exported_and_measured_in_place_of_the_last(
    make_config: Any, rows: list[ScoredRollout], tiny_model: Path
) -> None:
    config = make_config()
    feed = run(config, MisleadingFeed(rows))
    values = by_step(feed)
    best = min(values, key=lambda step: values[step])
    assert [*values] == [1, 2, 3, 4, 5, 6, 7]
    assert best < 7  # else the test shows nothing
    ended = end_of(feed)
    assert (ended.num_steps, ended.exported_step, ended.reason) == (7, best, None)
    assert ended.rows[-1].fidelity.kl_to_teacher == values[best]

    student = Student.load(tiny_model, config)
    kept = config.run_dir / "checkpoints" / f"best-{best:06d}"
    student.load_state_dict(load_checkpoint(kept)["student"])
    exported = read_quantized(config.run_dir / "export")
    trained = dict(student.quantized_layers())
    assert all(torch.equal(exported[name].codes, trained[name].codes) for name in trained)

    straight = make_config(best=None, name="straight", learner={**config.learner.model_dump(), "steps": best})
    run(straight, MisleadingFeed(rows))  # a run that ends there, as its rate is constant
    assert exported_files(straight) == exported_files(config)
    card = (config.run_dir / "export" / "README.md").read_text()
    assert f"Exported are the weights after step {best} of 7, the best by KL to teacher." in card


@pytest.mark.slow
@pytest.mark.parametrize("lost_at", [3, 5])
def test_a_run_that_was_lost_finds_the_same_best_weights_and_ends_at_the_same_step(
    make_config: Any, rows: list[ScoredRollout], lost_at: int
) -> None:
    straight, broken = make_config(2, name="straight"), make_config(2, name="broken")
    undisturbed = run(straight, MisleadingFeed(rows))
    ended = end_of(undisturbed)
    assert ended.num_steps == ended.exported_step + 2  # two evaluations without a better one
    assert ended.reason == f"kl_to_teacher was not better in 2 evaluations than after step {ended.exported_step}"
    lost = run_until_lost(broken, MisleadingFeed(rows), lost_at)
    again = run(broken, MisleadingFeed(rows))
    assert end_of(again) == ended
    assert by_step(lost, again) == by_step(undisturbed)
    assert exported_files(broken) == exported_files(straight)
    assert best_names(broken)[-1] == best_names(straight)[-1]
    (ready,) = [event for event in again.events if isinstance(event, ReadyEvent)]
    assert ready.measures_again == ("eval 3: after step 3" in again.log)  # so that it does not stand there twice


@pytest.mark.slow
def test_a_run_that_ended_early_is_only_measured_and_exported_again(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    config = make_config(2, every=4)  # it ends between two checkpoints
    first, again = run(config, MisleadingFeed(rows)), run(config, MisleadingFeed(rows))
    assert end_of(again) == end_of(first)
    assert [entry for entry in again.log if entry.startswith(("batch", "step", "checkpoint", "eval "))] == []


@pytest.mark.slow
def test_best_weights_that_are_gone_are_told_and_looked_for_anew(make_config: Any, rows: list[ScoredRollout]) -> None:
    config = make_config()
    run_until_lost(config, MisleadingFeed(rows), 6)
    for name in best_names(config):
        shutil.rmtree(config.run_dir / "checkpoints" / name)
    feed = run(config, MisleadingFeed(rows))
    (notice,) = [event.text for event in feed.events if isinstance(event, NoticeEvent)]
    assert notice.endswith("is not there: which weights are the best is found out anew")
    assert end_of(feed).exported_step == 6  # of those that were measured since, after steps 6 and 7


@pytest.mark.slow
def test_on_an_empty_machine_the_best_weights_come_from_the_storage(
    make_config: Any, rows: list[ScoredRollout], tmp_path: Path
) -> None:
    straight, config = make_config(name="straight"), make_config(storage=f"file://{tmp_path}/store")
    ended = end_of(run(straight, MisleadingFeed(rows)))
    run_until_lost(config, MisleadingFeed(rows), 6)
    shutil.rmtree(config.run_dir)
    assert end_of(run(config, MisleadingFeed(rows))) == ended
    assert exported_files(config) == exported_files(straight)


def fidelity(kl: float, top1: float = 0.5) -> Fidelity:
    return Fidelity(kl_to_teacher=kl, total_variation=0.1, top1_agreement=top1, perplexity=9.0, num_tokens=4)


def test_patience_counts_from_the_last_value_that_was_better_by_more_than_the_margin() -> None:
    config = Config(eval={"every": 1, "patience": 2, "min_delta": 0.1})
    evaluations = Evaluations(config)
    reasons = []
    for step, kl in enumerate([1.0, 0.95, 0.89, 0.85, 0.8], start=1):  # 0.89 is 0.11 below 1.0; 0.8 is 0.09 below that
        evaluations.add(step, fidelity(kl))
        reasons.append(evaluations.reason_to_end)
    assert reasons[:4] == [None] * 4
    assert reasons[4] == "kl_to_teacher was not better by more than 0.1 in 2 evaluations than after step 3"
    assert evaluations.best is not None
    assert evaluations.best.step == 5


def test_a_share_that_agrees_is_the_better_the_higher_and_no_number_is_never_the_best() -> None:
    evaluations = Evaluations(Config(eval={"every": 1}, checkpoint={"best": "top1_agreement"}))
    added = [evaluations.add(s, fidelity(1.0, top1)) for s, top1 in enumerate([float("nan"), 0.4, 0.6, 0.6, 0.5])]
    assert added == [False, True, True, False, False]
    assert evaluations.best is not None
    assert evaluations.best.step == 2


def test_the_metrics_to_choose_from_are_those_of_evaluations_that_have_a_better_side() -> None:
    choices, *_ = get_args(CheckpointConfig.model_fields["best"].annotation)
    assert set(get_args(choices)) == {metric.name for metric in METRICS if metric.better and metric.event == "eval"}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"checkpoint": {"best": "perplexity"}},
            "eval.every is 0, and checkpoint.best compares",
        ),
        ({"eval": {"patience": 2}}, "eval.every is 0, and eval.patience compares"),
        ({"checkpoint": {"best": "text_perplexity"}, "eval": {"every": 5}}, "measured of eval.text, which is none"),
    ],
)
def test_what_nothing_would_be_compared_with_is_refused(sections: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config(**sections)


def test_how_often_is_measured_matters_where_it_decides() -> None:
    plain, often = Config(), Config(eval={"every": 5})
    assert differences(plain, often) == []
    deciding = [Config(eval={"every": n}, checkpoint={"best": "kl_to_teacher"}) for n in (5, 6)]
    assert differences(*deciding) == ["eval.every: 5 -> 6"]
