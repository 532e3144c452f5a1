"""What a result's reader must know of its end: weights of another step than the last, fewer steps than planned."""

from __future__ import annotations

from rayqd.config import Config
from rayqd.metrics.catalogue import metric
from rayqd.runs.result_file import DistillResult, RunResult


def describe_ending(config: Config, num_steps: int, exported_step: int | None, reason: str | None) -> str:
    """Return it in one or two sentences; empty of a run whose last step is the planned one, and is exported."""
    sentences: list[str] = []
    if reason:
        sentences.append(f"Training ended after step {num_steps:,} of {config.learner.steps:,}: {reason}.")
    if config.checkpoint.best and exported_step is not None:
        title = config.checkpoint.best if config.best_is_task else metric(config.checkpoint.best).title
        last = " (the last step)" if exported_step == num_steps else f" of {num_steps:,}"
        sentences.append(f"Exported are the weights after step {exported_step:,}{last}, the best by {title}.")
    return " ".join(sentences)


def ending_of(config: Config, result: RunResult | None) -> str:
    """Return the same of a result."""
    if not isinstance(result, DistillResult):
        return ""
    return describe_ending(config, result.num_steps, result.exported_step, result.reason)
