"""Which role a run's steps wait for, and which setting would shorten them, by how much at best.

A step has its parts behind each other: rollouts, scores, the learner. At a staleness of k there are k + 1 steps on the
way at a time, each at another part, and a role works for one of them at a time:

    seconds = max(rollout, teacher, learner, (rollout + teacher + learner) / (k + 1))

so that at 2 none waits for another. Nothing of that holds where the roles compute on the same cores or GPUs, which are
no quicker for being asked at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rayqd.config import Config
from rayqd.events import StepEvent

_LEAST_STEPS = 4  # without the first, in which kernels are compiled
_LEAST_GAIN = 0.05  # of a step's time, below which nothing is proposed
_PARALLEL = {"rollout": "rollout.num_workers", "teacher": "teacher.num_workers", "learner": "learner.num_workers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """What a step of a run is made of."""

    role: str  # that is at work for longest
    busy: Mapping[str, float]  # seconds a step by role: of rollout workers and teachers the mean of one worker
    step_seconds: float  # of which the learner worked or waited
    setting: str | None  # that would shorten it; None where none does
    would_be: float  # seconds of a step with it, at best

    @property
    def sentence(self) -> str:
        """Return it for a reader."""
        share = self.busy[self.role] / self.step_seconds
        found = f"{self.role}, at work for {min(1.0, share):.0%} of the {_seconds(self.step_seconds)} that a step takes"
        if self.setting is None:
            return found
        return f"{found}; with {self.setting} a step would take {_seconds(self.would_be)} at best"


def find_bottleneck(steps: Sequence[StepEvent], config: Config, num_gpus: float) -> Bottleneck | None:
    """Judge a run's steps on a cluster of `num_gpus`; None where they are too few, or roles share what computes."""
    measured = [step for step in steps[1:] if step.learner.max_staleness == steps[-1].learner.max_staleness]
    gpus = {name: number * gpus_each for name, (number, gpus_each) in _workers(config).items()}
    free = num_gpus - sum(gpus.values())
    if len(measured) < _LEAST_STEPS or free < 0:
        return None
    busy = {
        "rollout": _mean(step.roles.rollout_seconds for step in measured) / config.rollout.num_workers,
        "teacher": _mean(step.roles.teacher_seconds for step in measured) / config.num_teacher_workers,
        "learner": _mean(step.learner.learner_seconds for step in measured),
    }
    step_seconds = busy["learner"] + _mean(step.learner.wait_seconds for step in measured)
    role = max(busy, key=lambda name: busy[name])
    staleness = measured[-1].learner.max_staleness
    options = _options(busy, config, role, free, config.rollout.first_staleness if staleness is None else staleness)
    setting, would_be = min(options, key=lambda option: option[1])
    if would_be > (1 - _LEAST_GAIN) * step_seconds:
        return Bottleneck(role=role, busy=busy, step_seconds=step_seconds, setting=None, would_be=step_seconds)
    return Bottleneck(role=role, busy=busy, step_seconds=step_seconds, setting=setting, would_be=would_be)


def _workers(config: Config) -> dict[str, tuple[int, int]]:
    """Return by role the number of its workers, and of the GPUs of each."""
    return {
        "rollout": (config.rollout.num_workers if config.is_on_policy else 0, config.rollout.tensor_parallel),
        "teacher": (config.num_teacher_workers, config.teacher.gpus_per_worker),
        "learner": (config.learner.num_workers, 1),
    }


def _options(
    busy: Mapping[str, float], config: Config, role: str, free: float, staleness: int
) -> Iterator[tuple[str, float]]:
    """Yield settings, and the seconds of a step that they lead to; `free`: GPUs that the run does not use."""
    may_run_ahead = config.teacher.payload != "sampled" and config.rollout.max_staleness != "auto"  # sampled: own text
    if busy["rollout"] and staleness < 2 and may_run_ahead:
        yield f"rollout.max_staleness = {staleness + 1}", predict_step(busy, staleness + 1)
    total, gpus_each = _workers(config)[role]
    each = len(config.teachers) if role == "teacher" else 1  # workers that the setting adds at a time
    number = total // each
    lacks = max(0, math.ceil(each * gpus_each - free))
    more = f" and {lacks} more GPU{'' if lacks == 1 else 's'}" if lacks else ""
    quicker = {**busy, role: busy[role] * number / (number + 1)}
    yield f"{_PARALLEL[role]} = {number + 1}{more}", predict_step(quicker, staleness)


def predict_step(busy: Mapping[str, float], max_staleness: int) -> float:
    """Return the seconds of a step whose roles work that long, where each has what it computes on to itself."""
    slowest = max(busy.values())
    if not busy["rollout"]:
        return slowest  # what comes from the data is scored ahead
    return max(slowest, sum(busy.values()) / (max_staleness + 1))


def _mean(numbers: Iterator[float]) -> float:
    values = list(numbers)
    return sum(values) / len(values)


def _seconds(value: float) -> str:
    return f"{value:.2g} s" if value < 1 else f"{value:.1f} s"
