"""Asynchronous successive halving (Li et al. 2020): when trials are compared, and which of them go on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayqd.config import Config
from rayqd.config.sections.sweep import SweepConfig
from rayqd.errors import ConfigError

if TYPE_CHECKING:
    from ray.tune.schedulers import ASHAScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """Steps at which a trial goes on only if it is among the best 1 in `reduction_factor` that came as far."""

    grace_steps: int
    reduction_factor: int
    num_steps: int

    @property
    def rungs(self) -> list[int]:
        """Return grace_steps, grace_steps · reduction_factor, ... below num_steps."""
        num = math.ceil(round(math.log(self.num_steps / self.grace_steps, self.reduction_factor), 9))
        return [self.grace_steps * self.reduction_factor**power for power in range(num)]

    def scheduler(self, metric: str) -> ASHAScheduler:
        """Make Ray Tune's scheduler, which hears of a trial's `step` and `metric` at each evaluation."""
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr="step",
            metric=metric,
            mode="min",
            max_t=self.num_steps,
            grace_period=self.grace_steps,
            reduction_factor=self.reduction_factor,
        )


def make_halving(sweep: SweepConfig, config: Config) -> Halving | None:
    """Return None where every trial runs to its end. Raises ConfigError where nothing could ever be stopped early."""
    if sweep.scheduler == "none":
        return None
    steps = config.learner.steps
    grace = sweep.grace_steps or max(1, math.ceil(steps / sweep.reduction_factor**2))
    if grace >= steps:
        raise ConfigError(f"sweep.grace_steps={grace}: must be below learner.steps={steps}, or asha stops nobody")
    every = eval_interval(sweep, config)
    if not 0 < every < steps:
        raise ConfigError(
            f"eval.every={every}: asha compares trials while they train; evaluate every 1 to {steps - 1} steps, "
            "or leave eval.every out"
        )
    return Halving(grace_steps=grace, reduction_factor=sweep.reduction_factor, num_steps=steps)


def eval_interval(sweep: SweepConfig, config: Config) -> int:
    """Return `eval.every` of the trials in steps: as given, else at asha's first rung and its multiples."""
    if sweep.scheduler == "none" or "every" in config.eval.model_fields_set:
        return config.eval.every
    return sweep.grace_steps or max(1, math.ceil(config.learner.steps / sweep.reduction_factor**2))
