"""A sweep that can start: every value in it has been looked at."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.config.sweep import SweepSpec
from rayqd.driver.frozen import with_frozen_settings
from rayqd.errors import ConfigError
from rayqd.sweep.halving import eval_interval, make_halving
from rayqd.sweep.space import check_values, corners, count_trials, enumerate_grid, sample_trials
from rayqd.sweep.trials import Outcome, Trial

if TYPE_CHECKING:
    from rayqd.sweep.suggest import Suggester


class Study:
    """The trials of a sweep, and each one's configuration."""

    def __init__(self, spec: SweepSpec) -> None:
        """Check every value; raises ConfigError at one that the settings refuse, and at parts that contradict."""
        self._spec = spec
        self.sweep = spec.sweep
        self.base = with_frozen_settings(with_absolute_paths(spec.config()))
        self.halving = make_halving(spec.sweep, self.base)
        self._eval_interval = eval_interval(spec.sweep, self.base)
        self.num_trials = count_trials(spec.sweep)
        check_values(spec)
        if self.sweep.search == "optuna" and find_spec("optuna") is None:
            raise ConfigError('sweep.search = "optuna" needs the package optuna: pip install "rayqd[tune]"')

    def trial_config(self, trial: Trial) -> Config:
        """Return the trial as a run. Raises ConfigError where its values contradict each other."""
        own = {"name": f"{self.base.name}/{trial.name}", "eval.every": self._eval_interval}
        config = with_absolute_paths(self._spec.config({**trial.settings, **own}))
        return with_frozen_settings(config, self.base.run_dir)

    def planned_trials(self) -> list[Trial]:
        """Return all trials, where they do not depend on each other's results; none of optuna."""
        match self.sweep.search:
            case "grid":
                return enumerate_grid(self.sweep.over)
            case "random":
                return sample_trials(self.sweep.over, self.num_trials, self.sweep.seed)
            case "optuna":
                return []

    def example_configs(self) -> list[Config]:
        """Return runs that between them have every value of every list, and both ends of every range."""
        settings = [trial.settings for trial in self.planned_trials()] or list(corners(self.sweep.over))
        return [self.trial_config(Trial(number=1, settings=values)) for values in settings]

    def make_suggester(self, before: Sequence[Outcome]) -> Suggester:
        """Return what suggests the trials that have not ended in an earlier session, whose outcomes are `before`."""
        from rayqd.sweep.suggest import FixedTrials, OptunaTrials

        ended = {outcome.trial.number: outcome for outcome in before if outcome.ended}
        if self.sweep.search == "optuna":
            known = [(o.trial, value) for o in ended.values() if (value := o.metric(self.sweep.metric)) is not None]
            unfinished = [outcome.trial for outcome in before if not outcome.ended]
            return OptunaTrials(self.sweep, self.num_trials, known, unfinished)
        return FixedTrials(trial for trial in self.planned_trials() if trial.number not in ended)

    def __str__(self) -> str:
        """`16 trials of learner.lr and distill.lmbda, by optuna, asha after 6 and 18 of 50 steps`."""
        names = list(self.sweep.over)
        over = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        parts = [f"{self.num_trials} trials of {over}", f"search {self.sweep.search}"]
        if self.halving:
            rungs = " and ".join(map(str, self.halving.rungs))
            parts.append(f"asha after {rungs} of {self.halving.num_steps} steps")
        return "; ".join(parts)
