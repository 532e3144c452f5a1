"""The learning rate as a function of the step alone, so that resuming needs no scheduler's state."""

from __future__ import annotations

import math

from rayqd.config.sections import LearnerConfig


def learning_rate(step: int, settings: LearnerConfig) -> float:
    """Return that of step `step` (0-based): a linear rise over the warm-up, then `learner.schedule` down to zero.

    Step 0 has already risen once, and the last step has not yet fallen to zero: no step is wasted.
    """
    warmup, total = round(settings.warmup_ratio * settings.steps), settings.steps + 1
    position = step + 1
    if position < warmup:
        return settings.lr * position / warmup
    progress = (position - warmup) / max(1, total - warmup)
    match settings.schedule:
        case "constant":
            return settings.lr
        case "linear":
            return settings.lr * (1 - progress)
        case "cosine":
            return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
