"""The rest of the run as a learner worker sees it, without Ray: everything that happens is written down in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rayqd.data.example_set import RunningText
from rayqd.events import (
    ArmResult,
    CheckpointEvent,
    EvalEvent,
    FinishedEvent,
    LearnerStep,
    ReadyEvent,
    ReportedEvent,
    StartEvent,
    StatusEvent,
)
from rayqd.metrics.fidelity import TaskResults
from rayqd.model.load import load_model
from rayqd.spans import SpansEvent
from rayqd.teacher.forward import Teacher
from rayqd.types import Batch, IntArray, Rollout, ScoredRollout, WireTensor


class NodeLostError(Exception):
    """Ends a worker in the middle of something."""


def scored_rows(model: Path, rollouts: list[Rollout]) -> list[ScoredRollout]:
    """Return rollouts with the teacher's states, in float32."""
    payloads = Teacher(load_model(model, "float32"), 8192).hidden(rollouts)
    return [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]


class FakeFeed:
    """The same rows at every step and as held-out rows; a test can act at a batch or a publish."""

    def __init__(self, rows: list[ScoredRollout], calibration: Sequence[IntArray] = ()) -> None:
        self._scored = rows
        self._calibration = list(calibration)
        self.log: list[str] = []
        self.events: list[ReportedEvent] = []
        self.published: dict[int, Mapping[str, WireTensor]] = {}
        self.policy_version: int | None = None  # of every batch
        self.max_staleness: int | None = None  # likewise
        self.stop: Callable[[], int]
        self.at_batch: dict[int, Callable[[], object]] = {}
        self.at_publish: dict[int, Callable[[], object]] = {}

    def batch(self, step: int) -> Batch:
        self.log.append(f"batch {step}")
        self.at_batch.get(step, lambda: None)()
        share = self.share(step)
        counts = [s.rollout.num_loss_tokens for s in self._scored]
        return Batch(
            share=share,
            num_loss_tokens=sum(counts),
            num_tokens=sum(s.rollout.num_tokens for s in self._scored),
            num_on_policy=0,
            policy_version=self.policy_version,
            max_staleness=self.max_staleness,
        )

    def share(self, step: int) -> list[ScoredRollout]:
        del step
        return self._scored

    def heldout(self) -> list[ScoredRollout]:
        self.log.append("heldout")
        return self._scored

    def text(self) -> RunningText | None:
        return None

    def calibration(self) -> list[IntArray]:
        self.log.append("calibration")
        return self._calibration

    def publish(self, version: int, tensors: Mapping[str, WireTensor]) -> None:
        self.log.append(f"publish {version}")
        self.published[version] = tensors
        self.at_publish.get(version, lambda: None)()

    def run_tasks(self, version: int, tensors: Mapping[str, WireTensor]) -> TaskResults:
        del tensors
        self.log.append(f"tasks {version}")
        return TaskResults()

    def report(self, event: ReportedEvent) -> None:
        self.events.append(event)
        if not isinstance(event, SpansEvent):  # which say what took how long, and may come at any time
            self.log.append(_describe(event))

    @property
    def rows(self) -> tuple[ArmResult, ...]:
        """The result of a run that is finished."""
        finished = self.events[-1]
        assert isinstance(finished, FinishedEvent)
        return finished.rows

    def when_stopping(self, stop: Callable[[], int]) -> None:
        self.stop = stop


def _describe(event: ReportedEvent) -> str:
    match event:
        case ReadyEvent(step=step):
            return f"ready {step}"
        case StartEvent(step=step):
            return f"start {step}"
        case LearnerStep(step=step):
            return f"step {step}"
        case CheckpointEvent(step=step):
            return f"checkpoint {step}"
        case EvalEvent(step=step, arm=arm):
            return f"eval {step}: {arm.name}"
        case StatusEvent(text=text):
            return text
        case _:
            return type(event).__name__
