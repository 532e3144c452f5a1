"""What an arm costs: time that adds up, who worked in it and who waited, accelerators held, and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayqd.cluster.placement import num_workers
from rayqd.comparison.budget import count_accelerators
from rayqd.comparison.jobs import Job
from rayqd.events import StepEvent
from rayqd.runs.metrics_file import read_events
from rayqd.runs.result_file import DistillResult, RunResult
from rayqd.runs.time_parts import LEARNER, WAITING, round_parts

EARLIER = "before it was stopped"  # the steps of earlier starts, of which nothing else is known
_ALL = "all of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCost:
    """What the workers of a role did with their time, all of them together."""

    busy_seconds: float
    idle_seconds: float
    tokens: int  # that they read or wrote, prompts included


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run, or of several together."""

    parts: Mapping[str, float]  # seconds that follow each other; they add up to `seconds`
    roles: Mapping[str, RoleCost]  # busy and idle of a role add up to `seconds` times its workers
    accelerator_seconds: float
    trained_tokens: int
    steps: int

    @property
    def seconds(self) -> float:
        """Return the wall time."""
        return round(sum(self.parts.values()), 1)

    def price(self, per_hour: float) -> float:
        """Return the money, where an accelerator has a price an hour."""
        return self.accelerator_seconds / 3600 * per_hour


def cost_of_run(job: Job, result: RunResult) -> Cost:
    """Add up what `result` and the run's metrics say."""
    if not isinstance(result, DistillResult):
        parts = dict(result.parts or {_ALL: result.seconds["total"]})
        return Cost(parts=parts, roles={}, accelerator_seconds=sum(parts.values()), trained_tokens=0, steps=0)
    steps = [event for event in read_events(job.directory) if isinstance(event, StepEvent)]
    parts = _parts(result, steps)
    seconds = sum(parts.values())
    cluster = result.environment.cluster if result.environment else None
    return Cost(
        parts=parts,
        roles=_roles(job, steps, seconds),
        accelerator_seconds=seconds * count_accelerators(job.config, cluster),
        trained_tokens=sum(step.learner.num_loss_tokens for step in steps),
        steps=result.num_steps,
    )


def add_costs(costs: Sequence[Cost]) -> Cost:
    """Return the sum."""
    parts = {name: sum(c.parts.get(name, 0.0) for c in costs) for c in costs for name in c.parts}
    names = dict.fromkeys(name for cost in costs for name in cost.roles)
    return Cost(
        parts=round_parts(parts),
        roles={name: _add_roles([cost.roles[name] for cost in costs if name in cost.roles]) for name in names},
        accelerator_seconds=sum(cost.accelerator_seconds for cost in costs),
        trained_tokens=sum(cost.trained_tokens for cost in costs),
        steps=sum(cost.steps for cost in costs),
    )


def _parts(result: DistillResult, steps: Sequence[StepEvent]) -> dict[str, float]:
    """Return the parts of the last start, and before them the steps of earlier ones."""
    parts = dict(result.parts or {_ALL: result.seconds["total"]})
    took = sum(step.learner.wait_seconds + step.learner.learner_seconds for step in steps)
    earlier = took - (parts.get(LEARNER, 0.0) + parts.get(WAITING, 0.0) if result.parts else 0.0)
    return round_parts({EARLIER: earlier, **parts} if earlier >= 1.0 else parts)


def _roles(job: Job, steps: Sequence[StepEvent], seconds: float) -> dict[str, RoleCost]:
    workers = num_workers(job.config)
    busy = {
        "rollout": sum(step.roles.rollout_seconds for step in steps),
        "teacher": sum(step.roles.teacher_seconds for step in steps),
        "learner": workers["learner"] * sum(step.learner.learner_seconds for step in steps),
    }
    tokens = {
        "rollout": sum(step.roles.rollout_seconds * (step.roles.rollout_tokens_per_second or 0.0) for step in steps),
        "teacher": sum(step.roles.teacher_seconds * (step.roles.teacher_tokens_per_second or 0.0) for step in steps),
        "learner": sum(step.learner.num_tokens for step in steps),
    }
    return {
        role: RoleCost(
            busy_seconds=round(busy[role], 1),
            idle_seconds=round(max(0.0, count * seconds - busy[role]), 1),
            tokens=round(tokens[role]),
        )
        for role, count in workers.items()
        if count
    }


def _add_roles(roles: Sequence[RoleCost]) -> RoleCost:
    return RoleCost(
        busy_seconds=round(sum(role.busy_seconds for role in roles), 1),
        idle_seconds=round(sum(role.idle_seconds for role in roles), 1),
        tokens=sum(role.tokens for role in roles),
    )
