"""What a sweep varies, and how it searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rayqd.config.sections.base import Section
from rayqd.config.sections.markers import SameResult


class Span(Section):
    """All numbers between two."""

    low: int | float
    high: int | float
    log: bool = False
    """Tried evenly over orders of magnitude."""
    integer: bool = False
    """Whole numbers only; always so for a setting that takes no others."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Span:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low} must be above 0 where log = true")
        if self.integer and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"low = {self.low} and high = {self.high} must be whole numbers where integer = true")
        return self


class SweepConfig(Section):
    """Many runs that differ in a few settings, and which of them is best."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """grid: every combination of the lists; random: sampled from lists and ranges; optuna: sampled too, and the more is
    known, the nearer to what did well (TPE)."""
    num_trials: int | None = Field(default=None, ge=1)
    """Trials of random and optuna; none: 16, or as many as there can be. A grid has one a combination."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: stops a trial early that is among the worse of those that came as far."""
    grace_steps: int | None = Field(default=None, ge=1)
    """asha: steps that every trial may do; none: learner.steps / reduction_factor²."""
    reduction_factor: int = Field(default=3, ge=2)
    """asha: the best 1 in so many goes on from grace_steps, from grace_steps · reduction_factor, and so forth."""
    max_concurrent: Annotated[int | None, SameResult()] = Field(default=None, ge=1)
    """Trials at a time; none: as many as have a GPU for each worker, or where there are none a CPU. Trials of a small
    model may share GPUs."""
    metric: Literal["kl_to_teacher", "perplexity"] = "kl_to_teacher"
    """What is to be small, on the held-out rows."""
    seed: int = Field(default=42, ge=0)
    """Decides what is sampled. The seed of the trials is the setting `seed`, the same for all."""
    over: Mapping[str, list[Any] | Span] = Field(default={})
    """Settings by their dotted names: a list of values, or {low, high, log, integer}."""
