"""The whole life of a learner worker, without Ray: what it asks and tells in which order, and how it goes on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from rayqd.actors.learner import make_batch
from rayqd.config import Config
from rayqd.errors import WorkerError
from rayqd.events import TEACHER, EvalEvent, LearnerStep, NoticeEvent, ReadyEvent
from rayqd.export.compressed_tensors import read_quantized
from rayqd.learner.checkpoint import load_checkpoint
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.initialization import Initialization
from rayqd.learner.worker import LearnerWorker
from rayqd.model.student import Student
from rayqd.model.wire import from_wire, to_wire
from rayqd.pipeline import Ref, RolloutRef, ScoredRef
from rayqd.types import Batch, HiddenPayload, Rollout, RolloutSummary, ScoredRollout, TeacherPayload
from tests.learner.fake_feed import FakeFeed, NodeLostError, scored_rows
from tests.model.calibrating import sequences


class OtherRank(SingleProcess):
    """A second worker where every worker has the whole student."""

    is_rank0 = False


@pytest.fixture
def rows(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    return scored_rows(tiny_model, make_rollouts((5, 9), (17, 3), (7, 3)))


@pytest.fixture
def make_config(tiny_config: Any) -> Any:
    def make(**sections: Any) -> Config:
        return tiny_config(model={"dtype": "float32"}, eval={"every": 2}, **sections)

    return make


def run(config: Config, feed: FakeFeed, group: SingleProcess | None = None) -> FakeFeed:
    LearnerWorker(config, feed, group or SingleProcess(), node="here").run()
    return feed


class WrittenFeed(FakeFeed):
    """Three sequences a step: the data's, of 50 tokens, and two of the student's, of 5 and of 40 that its limit cut."""

    def batch(self, step: int) -> Batch:
        refs = [
            ScoredRef(
                rollout=RolloutRef(
                    summary=RolloutSummary(
                        step=step, index=0, num_tokens=60, num_loss_tokens=n, policy_version=version, is_cut=is_cut
                    ),
                    ref=cast("Ref[Rollout]", None),
                ),
                payload=cast("Ref[TeacherPayload]", None),
            )
            for n, version, is_cut in ((50, None, False), (5, step, False), (40, step, True))
        ]
        return make_batch(refs, super().batch(step).share)


def test_a_step_says_how_long_the_students_completions_are_and_how_many_were_cut(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    feed = run(make_config(learner={"steps": 1}), WrittenFeed(rows))
    (step,) = [event for event in feed.events if isinstance(event, LearnerStep)]
    assert step.mean_completion_tokens == 22.5  # (5 + 40) / 2
    assert step.cut_share == 0.5


def run_until_lost(config: Config, feed: FakeFeed, step: int) -> FakeFeed:
    """The worker is gone while it waits for the batch of `step`."""

    def lose() -> None:
        raise NodeLostError

    feed.at_batch[step] = lose
    with pytest.raises(NodeLostError):
        run(config, feed)
    return feed


def exported_files(config: Config) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (config.run_dir / "export").glob("*.safetensors")}


def test_from_the_untrained_arms_to_the_export_everything_comes_in_order(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    feed = run(make_config(), FakeFeed(rows))
    assert feed.log == [
        *("ready -1", "heldout", "calibration", "eval 0: round-to-nearest INT4"),
        *("start 0", "publish 0"),
        *("batch 0", "step 1", "publish 1"),
        *("batch 1", "step 2", "publish 2", "checkpoint 2", "eval 2: after step 2"),
        *("batch 2", "step 3", "publish 3"),
        *("batch 3", "step 4", "checkpoint 4"),
        *("evaluating and exporting", "FinishedEvent"),
    ]
    assert feed.events[0] == ReadyEvent(role="learner", step=-1, node="here")


def test_what_is_exported_and_reported_is_what_the_last_checkpoint_holds(
    make_config: Any, rows: list[ScoredRollout], tiny_model: Path
) -> None:
    config = make_config()
    feed = run(config, FakeFeed(rows))
    student = Student.load(tiny_model, config)
    student.load_state_dict(load_checkpoint(config.run_dir / "checkpoints" / "step-000004")["student"])
    exported = read_quantized(config.run_dir / "export")
    trained = dict(student.quantized_layers())
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name].codes, trained[name].codes) for name in trained)

    assert [row.arm.name for row in feed.rows] == ["teacher", "round-to-nearest INT4", "distilled INT4"]
    teacher, untrained, _ = feed.rows
    assert (teacher.arm, teacher.fidelity.kl_to_teacher) == (TEACHER, 0.0)
    measured = next(event for event in feed.events if isinstance(event, EvalEvent))
    assert untrained.fidelity == measured.fidelity


def test_a_worker_that_was_lost_goes_on_from_its_checkpoint_to_the_same_bits(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    straight, broken = make_config(name="straight"), make_config(name="broken")
    run(straight, FakeFeed(rows))
    assert run_until_lost(broken, FakeFeed(rows), 3).log[-1] == "batch 3"
    feed = run(broken, FakeFeed(rows))
    assert feed.log[:6] == ["ready 2", "heldout", "calibration", "start 2", "publish 2", "batch 2"]
    assert exported_files(broken) == exported_files(straight)


def test_a_damaged_checkpoint_and_starting_point_are_put_aside_and_the_run_ends_with_the_same_bits(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    straight, broken = make_config(name="straight"), make_config(name="broken")
    run(straight, FakeFeed(rows))
    run(broken, FakeFeed(rows))
    for file in ("checkpoints/step-000004/optimizer.safetensors", "start/arms.json"):
        content = bytearray((broken.run_dir / file).read_bytes())
        content[len(content) // 2] ^= 4
        (broken.run_dir / file).write_bytes(content)
    feed = run(broken, FakeFeed(rows))
    assert [event.text.partition(":")[0] for event in feed.events if isinstance(event, NoticeEvent)] == [
        f"checkpoint {broken.run_dir}/checkpoints/step-000004 is damaged",
        f"{broken.run_dir}/start is damaged",
    ]
    assert {"ready 2", "eval 0: round-to-nearest INT4", "start 2", "batch 2", "step 4"} <= set(feed.log)
    assert "batch 1" not in feed.log
    assert exported_files(broken) == exported_files(straight)
    assert (broken.run_dir / "checkpoints" / "step-000004-damaged").is_dir()
    assert (broken.run_dir / "start-damaged").is_dir()


def test_a_checkpoint_over_another_base_is_told(
    make_config: Any, rows: list[ScoredRollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    run_until_lost(config, FakeFeed(rows), 3)
    load = Initialization.load_student

    def load_another(self: Initialization, *args: Any) -> Student:
        student = load(self, *args)
        weight = student.model.get_parameter("model.layers.1.mlp.up_proj.base_layer.weight")
        weight.data[0, 0] += 1
        return student

    monkeypatch.setattr(Initialization, "load_student", load_another)
    (notice,) = [event.text for event in run(config, FakeFeed(rows)).events if isinstance(event, NoticeEvent)]
    assert notice.startswith("1 of 14 layers round to other values here than where the checkpoint was made (model.lay")


def test_a_run_that_is_done_is_only_measured_and_exported_again(make_config: Any, rows: list[ScoredRollout]) -> None:
    config = make_config()
    first, again = run(config, FakeFeed(rows)), run(config, FakeFeed(rows))
    assert [entry for entry in again.log if entry.startswith(("batch", "step", "checkpoint"))] == []
    assert again.rows == first.rows


def test_a_finished_run_with_more_steps_ends_with_the_bits_of_one_that_had_them_from_the_start(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    def configure(name: str, num_steps: int) -> Config:
        return make_config(name=name, learner={"steps": num_steps, "schedule": "constant", "warmup_ratio": 0.0})

    run(configure("longer", 4), FakeFeed(rows))
    feed = run(configure("longer", 6), FakeFeed(rows))
    straight = run(configure("straight", 6), FakeFeed(rows))
    assert [entry for entry in feed.log if entry.startswith("batch")] == ["batch 4", "batch 5"]
    assert exported_files(configure("longer", 6)) == exported_files(configure("straight", 6))
    assert feed.rows == straight.rows


def test_on_an_empty_machine_a_run_goes_on_from_its_storage(
    make_config: Any, rows: list[ScoredRollout], tmp_path: Path
) -> None:
    config = make_config(storage=f"file://{tmp_path}/store")
    run_until_lost(config, FakeFeed(rows), 3)
    shutil.rmtree(config.run_dir)
    feed = run(config, FakeFeed(rows))
    assert feed.log[:4] == ["ready 2", "heldout", "calibration", "start 2"]  # the untrained arms are there as well
    stored = tmp_path / "store" / "tiny"
    assert {path.name for path in (stored / "checkpoints").iterdir()} == {"step-000002", "step-000004"}
    for name, content in exported_files(config).items():
        assert (stored / "export" / name).read_bytes() == content


def test_another_rank_trains_and_does_nothing_else(make_config: Any, rows: list[ScoredRollout]) -> None:
    config = make_config()
    run_until_lost(config, FakeFeed(rows), 0)  # rank 0 has made the untrained arms
    feed = run(config, FakeFeed(rows), OtherRank())
    assert feed.log == [
        "ready 0",
        "start 0",
        *(f"{what} {s + i}" for s in range(4) for i, what in enumerate(("batch", "step"))),
    ]
    assert {path.name for path in config.run_dir.iterdir()} == {"start"}


def test_calibration_is_reported_layer_by_layer_and_its_arm_is_in_the_result(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    feed = run(make_config(quant={"init": "gptq", "group_size": 64}), FakeFeed(rows, sequences(8)))
    assert feed.log[2:8] == [
        "calibration",
        "eval 0: round-to-nearest INT4",
        "calibrating, layer 1 of 2",
        "calibrating, layer 2 of 2",
        "eval 0: GPTQ INT4",
        "start 0",
    ]
    assert [row.arm.name for row in feed.rows][1:] == ["round-to-nearest INT4", "GPTQ INT4", "distilled INT4"]


def test_a_step_without_a_gradient_is_told_and_its_sequences_are_kept(
    make_config: Any, rows: list[ScoredRollout]
) -> None:
    class Sick(FakeFeed):
        def share(self, step: int) -> list[ScoredRollout]:
            if step != 1:
                return super().share(step)
            payload = rows[0].payload
            assert isinstance(payload, HiddenPayload)
            hidden = from_wire(payload.hidden) * torch.nan
            return [replace(rows[0], payload=HiddenPayload(hidden=to_wire(hidden))), *rows[1:]]

    config = make_config()
    feed = run(config, Sick(rows))
    (notice,) = [event.text for event in feed.events if isinstance(event, NoticeEvent)]
    directory = config.run_dir / "bad-steps"
    assert notice == (
        "step 2: the gradient is inf or nan; the step is skipped, nothing has changed; "
        f"its sequences are in {directory}"
    )
    assert feed.log[-1] == "FinishedEvent"
    (file,) = directory.iterdir()
    kept = np.load(file, allow_pickle=False)
    for row in rows:
        assert np.array_equal(kept[f"completion_ids-{row.rollout.index}"], row.rollout.completion_ids)


def test_rollouts_that_are_older_than_allowed_are_refused(make_config: Any, rows: list[ScoredRollout]) -> None:
    feed = FakeFeed(rows)
    feed.policy_version = 0
    with pytest.raises(WorkerError, match=r"step 1 got rollouts 1 versions old; rollout\.max_staleness=0"):
        run(make_config(), feed)
    assert feed.log[-1] == "batch 1"


def test_they_may_be_as_old_as_auto_has_come_to(make_config: Any, rows: list[ScoredRollout]) -> None:
    config = make_config(rollout={"max_staleness": "auto"})
    feed = FakeFeed(rows)
    feed.policy_version, feed.max_staleness = 0, 1
    with pytest.raises(WorkerError, match=r"step 2 got rollouts 2 versions old; rollout\.max_staleness=1"):
        run(config, feed)
    feed.max_staleness = None
    with pytest.raises(WorkerError, match=r"step 1 got rollouts 1 versions old; rollout\.max_staleness=0"):
        run(make_config(name="not-yet", rollout={"max_staleness": "auto"}), feed)
