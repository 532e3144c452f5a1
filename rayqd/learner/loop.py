"""The training loop: resume, step to the last step, save checkpoints, publish the new weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from rayqd.config import Config
from rayqd.errors import WorkerError
from rayqd.events import Arm, ArmKind, CheckpointEvent, EvalEvent, Fidelity, LearnerStep, ReportedEvent, StartEvent
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.checkpointer import Checkpointer
from rayqd.learner.learner import Learner
from rayqd.model.student import Student
from rayqd.model.wire import to_wire
from rayqd.quant import pack
from rayqd.types import Batch, WireTensor


class Feed(Protocol):
    """The learner's view of the rest of the run."""

    def batch(self, step: int) -> Batch: ...
    def publish(self, version: int, tensors: Mapping[str, WireTensor]) -> None: ...  # rank 0 alone
    def report(self, event: ReportedEvent) -> None: ...  # rank 0 alone
    def when_stopping(self, stop: Callable[[], int]) -> None: ...


def train(
    learner: Learner,
    feed: Feed,
    checkpoints: Checkpoints,
    config: Config,
    *,
    evaluate: Callable[[], Fidelity],
) -> None:
    """Train from the last checkpoint, if there is one, to the last step.

    Only rank 0 writes, publishes and evaluates; where the weights are sharded, the others join its collectives.
    """
    start = _resume(learner, checkpoints)
    checkpointer = Checkpointer(learner, checkpoints, start)
    joins = learner.group.joins_collectives
    if joins:
        feed.when_stopping(checkpointer.stop)
    feed.report(StartEvent(step=start))
    publishes = joins and config.is_on_policy
    if publishes:
        feed.publish(start, weights_on_the_wire(learner.student, config))
    for step in range(start, config.learner.steps):
        version = step + 1
        last = version == config.learner.steps
        with checkpointer.step(version):
            _one_step(learner, feed, config, step)
            if publishes and not last:
                feed.publish(version, weights_on_the_wire(learner.student, config))
            if joins and (last or version % config.checkpoint.every == 0):
                path = checkpointer.save(version)
                feed.report(CheckpointEvent(step=version, path=str(path)))
        if joins and config.eval.every and version % config.eval.every == 0 and not last:
            arm = Arm(kind=ArmKind.DISTILLED, step=version)
            feed.report(EvalEvent(step=version, arm=arm, fidelity=evaluate()))


def weights_on_the_wire(student: Student, config: Config) -> dict[str, WireTensor]:
    """What rollout workers lack: the codes, and where training starts from AWQ the norms and biases that it moved."""
    if config.quant.init != "awq":
        return packed_codes(student)
    moved = {name: to_wire(tensor) for name, tensor in student.dense_tensors().items() if tensor.dim() == 1}
    return packed_codes(student) | moved


def packed_codes(student: Student) -> dict[str, WireTensor]:
    """The student's quantized weights as they travel: 4-bit codes and scales under compressed-tensors names."""
    return {
        f"{name}.{key}": to_wire(tensor)
        for name, quantized in student.quantized_layers()
        for key, tensor in pack(quantized, student.quant.format).items()
    }


def _resume(learner: Learner, checkpoints: Checkpoints) -> int:
    steps = checkpoints.steps()
    if not steps:
        return 0
    learner.load_state_dict(load_checkpoint(checkpoints.path(steps[-1])))
    return steps[-1]


def _one_step(learner: Learner, feed: Feed, config: Config, step: int) -> None:
    began = time.perf_counter()
    batch = feed.batch(step)
    ready = time.perf_counter()
    staleness = step - batch.policy_version if batch.policy_version is not None else 0
    if not 0 <= staleness <= config.rollout.max_staleness:
        raise WorkerError(
            f"step {step} got rollouts {staleness} versions old; rollout.max_staleness={config.rollout.max_staleness}"
        )
    result = learner.step(step, batch.share, batch.num_loss_tokens)
    done = time.perf_counter()
    feed.report(
        LearnerStep(
            step=step + 1,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=result.lr,
            num_tokens=batch.num_tokens,
            num_loss_tokens=batch.num_loss_tokens,
            num_on_policy=batch.num_on_policy,
            staleness=staleness,
            wait_seconds=ready - began,
            learner_seconds=done - ready,
            learner_tokens_per_second=batch.num_tokens / (done - ready),
        )
    )
