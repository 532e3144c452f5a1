"""What a comparison repeats and how long each arm may take, and what counts as no difference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rayqd.config.sections.base import Section
from rayqd.config.sections.markers import SameResult

Budget = Literal["steps", "tokens", "accelerator-seconds", "wall-clock"]


class CompareConfig(Section):
    """Several ways to the same small model, at one price, and whether they differ."""

    seeds: list[int] = Field(default=[0, 1], min_length=1)
    """Each arm is trained once with each of them. One seed says nothing of what others would have given."""
    budget: Budget = "steps"
    """What is equal for all arms that train. steps: of the optimizer; tokens: trained on; accelerator-seconds: from the
    start to the end, times the GPUs that the run holds, or the machine where it holds none; wall-clock: seconds."""
    amount: float | None = Field(default=None, gt=0)
    """How much of it each seed of an arm has; none: learner.steps, where the budget is steps."""
    pilot_steps: int = Field(default=4, ge=2)
    """Optimizer steps of the pilot by which a budget other than steps is turned into steps, once for each arm."""
    margin: float = Field(default=0.01, gt=0)
    """Nats a token: arms whose KL to the teacher differs by less are equivalent."""
    against: str | None = None
    """The arm that the others are held against; none: off-policy, or the first that trains."""
    max_concurrent: Annotated[int | None, SameResult()] = Field(default=None, ge=1)
    """Runs at a time; none: one without training, and of those that train as many as have a GPU for each worker or,
    where there are none, a CPU; one where seconds are the budget. Runs of a small model may share GPUs."""
