"""Where a run's time went, in parts that follow each other and add up to all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

START, LEARNER, WAITING, BETWEEN, END = "start", "learner", "waiting", "between steps", "end"
DESCRIPTIONS = {
    START: "until the first step began",
    LEARNER: "the learner at work",
    WAITING: "the learner waited for its batch, which rollout workers and teachers make",
    BETWEEN: "checkpoints, evaluations, new weights to the rollouts",
    END: "after the last step",
}


@dataclass(slots=True)
class StepTimes:
    """What a process has heard of the steps that it saw."""

    first: float | None = None  # when the first of them was done, seconds since the epoch
    last: float | None = None  # the same of the newest
    first_seconds: float = 0.0  # that the first took
    work: float = 0.0  # seconds of the learner, all steps together
    wait: float = 0.0  # seconds that it waited for batches

    def add(self, time: float, work_seconds: float, wait_seconds: float) -> None:
        """Count a step that was done at `time`, in seconds since the epoch."""
        if self.first is None:
            self.first, self.first_seconds = time, work_seconds + wait_seconds
        self.last = time
        self.work += work_seconds
        self.wait += wait_seconds

    def split(self, began: float, ended: float) -> dict[str, float] | None:
        """Return seconds by part of a run from `began` to `ended`, by the epoch's clock; None where it had no step."""
        if self.first is None or self.last is None:
            return None
        start = max(0.0, self.first - self.first_seconds - began)
        end = max(0.0, ended - self.last)
        between = max(0.0, ended - began - start - end - self.work - self.wait)
        return round_parts({START: start, LEARNER: self.work, WAITING: self.wait, BETWEEN: between, END: end})


def round_parts(parts: Mapping[str, float]) -> dict[str, float]:
    """Round to tenths of a second; the parts still add up to their own sum, rounded."""
    rounded: dict[str, float] = {}
    exact = shown = 0.0
    for name, seconds in parts.items():
        exact += seconds
        rounded[name] = round(round(exact, 1) - shown, 1)
        shown = round(exact, 1)
    return rounded
