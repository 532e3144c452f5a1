"""A finished run goes on with more steps: whether its data and its learning rate are those of a longer run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rayqd.config import Config
from rayqd.config.sections import LearnerConfig
from rayqd.data.plan import make_plan
from rayqd.errors import RunError
from rayqd.learner.schedule import learning_rate
from rayqd.runs.directory import RunDirectory


def begin_audit(run_dir: RunDirectory, config: Config, num_examples: Sequence[int]) -> None:
    """Take the run's plan. Raises RunError where the steps that are done followed another one."""
    try:
        run_dir.audit.begin(asdict(make_plan(config, num_examples)))
    except RunError as error:
        if run_dir.extends is None:
            raise
        before = run_dir.extends.learner.steps
        raise RunError(
            f"{run_dir.path} has finished {before} steps, for which it took part of the data's rows, and a run of "
            f"{config.learner.steps} takes more of them from its first step on: give it another name"
        ) from error


def extend(run_dir: RunDirectory, config: Config) -> list[str]:
    """Let a finished run go on to `learner.steps`; return lines for the user, none where it does no more."""
    old = run_dir.extends
    lines = run_dir.extend(config)
    return [*lines, describe_rate(old.learner, config.learner)] if old else lines


def describe_rate(old: LearnerConfig, new: LearnerConfig) -> str:
    """Say what a schedule that depends on the number of steps does where a run is made longer."""
    before = [learning_rate(step, old) for step in range(old.steps)]
    after = [learning_rate(step, new) for step in range(old.steps + 1)]
    if before == after[:-1]:
        return f"learning rate: {after[-1]:.2g}, as in a run of {new.steps} steps from its start"
    return (
        f"learning rate: {after[-1]:.2g} at step {old.steps + 1}, after {before[-1]:.2g} at the last one: "
        f"{_describe(new)} is now over {new.steps} steps, and the steps that are done had other rates than in a run of "
        f"{new.steps} from its start"
    )


def _describe(settings: LearnerConfig) -> str:
    warmup = f"warm-up of {settings.warmup_ratio:g}" if settings.warmup_ratio else ""
    schedule = f"schedule {settings.schedule}" if settings.schedule != "constant" else ""
    return " and ".join(filter(None, [schedule, warmup])) or "the schedule"
