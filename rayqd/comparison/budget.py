"""One budget for all arms, as optimizer steps: learning rates are scheduled over steps, so that every arm must know
before it starts how many it has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rayqd.cluster.placement import num_gpus, num_workers
from rayqd.comparison.jobs import Job, Jobs
from rayqd.config import Config
from rayqd.config.sections.compare import Budget
from rayqd.errors import ConfigError, RunError
from rayqd.events import StepEvent
from rayqd.runs.environment import ClusterSize, Environment
from rayqd.runs.metrics_file import read_timed_events
from rayqd.runs.paths import RESULT
from rayqd.runs.result_file import DistillResult, read_result

UNITS: Mapping[Budget, str] = {
    "steps": "steps",
    "tokens": "tokens",
    "accelerator-seconds": "accelerator-seconds",
    "wall-clock": "seconds",
}
TIMED: frozenset[Budget] = frozenset({"wall-clock", "accelerator-seconds"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What a step of an arm takes, and what a run takes beside its steps."""

    tokens: float  # trained on, a step
    seconds: float  # a step, waiting for its batch included
    fixed_seconds: float  # start, evaluations, export
    accelerators: int

    def spent(self, budget: Budget, steps: int) -> float:
        """Return what a run of so many steps would take of the budget."""
        match budget:
            case "steps":
                return steps
            case "tokens":
                return steps * self.tokens
            case "wall-clock":
                return self.fixed_seconds + steps * self.seconds
            case "accelerator-seconds":
                return self.accelerators * (self.fixed_seconds + steps * self.seconds)


def count_accelerators(config: Config, cluster: ClusterSize | None) -> int:
    """Return the GPUs that a run holds from its start to its end, working or not; without any 1: the machine."""
    if cluster is None or not cluster.gpus:
        return 1
    held = sum(count * num_gpus(config)[role] for role, count in num_workers(config).items())
    return max(1, min(int(cluster.gpus), held))


def read_pace(job: Job) -> Pace | None:
    """Return what a pilot measured; None until it has finished. Its first step, which compiles, counts as start.

    Of one that was stopped and went on only what came after its last start counts, to which its total belongs.
    """
    result = read_result(job.directory / RESULT)
    if not isinstance(result, DistillResult):
        return None
    timed = [(time, event) for time, event in read_timed_events(job.directory) if isinstance(event, StepEvent)]
    began = result.finished - result.seconds["total"] if result.finished else 0.0
    steps = [event for time, event in timed if time >= began]
    steps = steps or [event for _, event in timed]  # it had done them all, and lacked its end
    later = steps[1:] or steps
    took = [step.learner.wait_seconds + step.learner.learner_seconds for step in steps]
    cluster = result.environment.cluster if result.environment else None
    return Pace(
        tokens=fmean(step.learner.num_loss_tokens for step in later),
        seconds=fmean(took[1:] or took),
        fixed_seconds=max(0.0, result.seconds["total"] - sum(took[1:])),
        accelerators=count_accelerators(job.config, cluster),
    )


def check_pilots(pilots: Sequence[Job], here: Environment) -> None:
    """Raise RunError where a budget of time would rest on what another machine took."""
    for job in pilots:
        result = read_result(job.directory / RESULT)
        there = result.environment if result else None
        if there and _hardware(there) != _hardware(here):
            raise RunError(
                f"{job.directory} was timed on {_hardware(there)}, and this is {_hardware(here)}: seconds there are no "
                "measure here; go on there, give this comparison another name, or remove the directories of its pilots"
            )


def _hardware(environment: Environment) -> str:
    """Return what decides how long a step takes: the GPUs, or else the processor."""
    if environment.cluster and environment.cluster.accelerators:
        return ", ".join(environment.cluster.accelerators)
    return f"{environment.machine.cores} cores of {environment.machine.processor}"


def steps_of_arms(jobs: Jobs, pilots: Sequence[Job]) -> dict[str, int]:
    """Return the steps of each arm by its name; of arms whose pilot failed none.

    Raises ConfigError where the budget is too small for one step of an arm.
    """
    compare = jobs.spec.compare
    if compare.budget == "steps":
        steps = int(compare.amount or jobs.base.learner.steps)
        return {arm.name: steps for arm in jobs.trained_arms}
    assert compare.amount is not None
    paces = {job.arm.name: pace for job in pilots if (pace := read_pace(job))}
    return {name: fit_steps(name, pace, compare.budget, compare.amount) for name, pace in paces.items()}


def fit_steps(name: str, pace: Pace, budget: Budget, amount: float) -> int:
    """Return the number of steps that comes nearest to the budget. Raises ConfigError where it has room for none."""
    fixed = pace.spent(budget, 0)
    steps = round((amount - fixed) / (pace.spent(budget, 1) - fixed))
    if steps < 1:
        least = math.ceil(pace.spent(budget, 1))
        raise ConfigError(
            f"compare.amount = {amount:g}: arm {name} needs {least:,} {UNITS[budget]} for a single step, of which "
            f"{fixed:,.0f} before it; raise it to what leaves room for training"
        )
    return steps
