"""What a learner tells of each step, and tells again from a checkpoint where it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rayqd.audit import DATA, AuditEvent, Call, SequenceAudit, StepAudit, audit_step
from rayqd.learner import audit_trail
from rayqd.learner.audit_trail import digest_weights
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.worker import LearnerWorker
from rayqd.types import Batch, ScoredRollout
from tests.learner.fake_feed import FakeFeed, scored_rows

pytestmark = pytest.mark.slow


class AuditedFeed(FakeFeed):
    """Says of each sequence who made it."""

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        made = [
            SequenceAudit(
                index=index,
                example=index,
                version=None,
                tokens=scored.rollout.digest,
                wrote=Call(worker=DATA),
                scored=Call(worker="teacher-0"),
            )
            for index, scored in enumerate(batch.share)
        ]
        return replace(batch, audit=audit_step(step + 1, made))

    @property
    def told(self) -> list[tuple[StepAudit, ...]]:
        return [event.steps for event in self.events if isinstance(event, AuditEvent)]


@pytest.fixture
def rows(tiny_model: Path, make_rollouts: Any) -> list[ScoredRollout]:
    return scored_rows(tiny_model, make_rollouts((5, 9), (17, 3)))


def run(config: Any, feed: AuditedFeed) -> AuditedFeed:
    LearnerWorker(config, feed, SingleProcess()).run()
    return feed


def test_every_step_is_told_once_with_the_weights_that_its_checkpoint_holds(
    tiny_config: Any, rows: list[ScoredRollout]
) -> None:
    config = tiny_config(model={"dtype": "float32"})
    feed = run(config, AuditedFeed(rows))
    assert [[audit.step for audit in steps] for steps in feed.told] == [[1], [2], [3], [4]]
    by_step = {audit.step: audit for steps in feed.told for audit in steps}
    assert len({audit.weights for audit in by_step.values()}) == 4  # each step moved them
    for step in (2, 4):
        saved = load_file(config.run_dir / "checkpoints" / f"step-{step:06d}" / "student.safetensors")
        assert by_step[step].weights == digest_weights(saved)


def test_a_learner_that_goes_on_tells_of_the_checkpoints_steps_again(
    tiny_config: Any, rows: list[ScoredRollout]
) -> None:
    config = tiny_config(model={"dtype": "float32"})
    lost = AuditedFeed(rows)

    def lose() -> None:
        raise InterruptedError

    lost.at_batch[3] = lose
    with pytest.raises(InterruptedError):
        run(config, lost)
    feed = run(config, AuditedFeed(rows))
    assert feed.told[0] == lost.told[0] + lost.told[1]
    assert [[audit.step for audit in steps] for steps in feed.told[1:]] == [[3], [4]]
    assert feed.told[1] == lost.told[2]  # the same weights again


def test_of_large_weights_there_is_a_digest_at_checkpoints_alone(
    tiny_config: Any, rows: list[ScoredRollout], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "MAX_BYTES_EACH_STEP", 0)
    config = tiny_config(model={"dtype": "float32"})
    feed = run(config, AuditedFeed(rows))
    assert [steps[0].weights is not None for steps in feed.told] == [False, True, False, True]
    saved = load_file(config.run_dir / "checkpoints" / "step-000004" / "student.safetensors")
    assert feed.told[3][0].weights == digest_weights(saved)
