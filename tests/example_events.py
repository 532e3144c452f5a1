"""Events as a run leaves them, for tests that read what a run has left."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from rayqd.events import Arm, ArmResult, EvalEvent, Fidelity, LearnerStep, RoleMetrics, StepEvent
from rayqd.metrics.fidelity import TaskValue

LEARNER = LearnerStep(
    step=1,
    loss=1.0,
    grad_norm=0.5,
    lr=1e-3,
    num_tokens=900,
    num_loss_tokens=400,
    num_on_policy=4,
    staleness=0,
    wait_seconds=4.0,
    learner_seconds=6.0,
    learner_tokens_per_second=150.0,
)
ROLES = RoleMetrics(
    num_retries=0,
    num_quarantined=0,
    teacher_cache_hits=0,
    teacher_cache_misses=0,
    rollout_seconds=2.0,
    rollout_tokens_per_second=200.0,
    teacher_seconds=1.0,
    teacher_tokens_per_second=900.0,
)
_OF_LEARNER = {field.name for field in fields(LearnerStep)}


def step_event(step: int, **changed: Any) -> StepEvent:
    """A step that took ten seconds, four of them waiting."""
    learner = {name: value for name, value in changed.items() if name in _OF_LEARNER}
    roles = {name: value for name, value in changed.items() if name not in _OF_LEARNER}
    return StepEvent(learner=replace(LEARNER, **{"step": step, **learner}), roles=replace(ROLES, **roles))


def fidelity(kl: float, **changed: Any) -> Fidelity:
    """Of a model that is `kl` from its teacher."""
    whole = Fidelity(kl_to_teacher=kl, total_variation=kl / 2, top1_agreement=1 - kl, perplexity=10 + kl, num_tokens=50)
    return replace(whole, **changed)


def task_value(task: str, metric: str, value: float, **changed: Any) -> TaskValue:
    """What a benchmark of 64 documents came to."""
    fields = {"filter": "none", "stderr": 0.1, "num_documents": 64, "higher_is_better": True} | changed
    return TaskValue(task=task, metric=metric, value=value, **fields)


def eval_event(arm: str, kl: float, step: int = 0, **changed: Any) -> EvalEvent:
    """A measurement of the arm of that name."""
    return EvalEvent(step=step, arm=Arm.from_name(arm), fidelity=fidelity(kl, **changed))


def arm_result(arm: str, kl: float, **changed: Any) -> ArmResult:
    """A row of a result."""
    measured = fidelity(kl, **changed)
    return ArmResult(arm=Arm.from_name(arm), fidelity=measured, bits_per_weight=4.25, size_bytes=1_000_000)
