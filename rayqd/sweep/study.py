"""A sweep that can start: every value in it has been looked at."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths
from rayqd.config.sweep import SweepSpec
from rayqd.errors import ConfigError
from rayqd.sweep.halving import evaluations_every, halving_of
from rayqd.sweep.space import check_values, corners, drawn, grid, num_trials
from rayqd.sweep.trials import Outcome, Trial

if TYPE_CHECKING:
    from rayqd.sweep.suggest import Suggester


class Study:
    """The trials of a sweep, and each as a run."""

    def __init__(self, config: SweepSpec) -> None:
        """Raises ConfigError at a value that the settings refuse, and at parts that do not go together."""
        self._config = config
        self.sweep = config.sweep
        self.base = with_absolute_paths(config.config())
        self.halving = halving_of(config.sweep, self.base)
        self._every = evaluations_every(config.sweep, self.base)
        self.num_trials = num_trials(config.sweep)
        check_values(config)
        if self.sweep.search == "optuna" and find_spec("optuna") is None:
            raise ConfigError('sweep.search = "optuna" needs the package optuna: pip install "rayqd[tune]"')

    def run(self, trial: Trial) -> Config:
        """The trial as a run. Raises ConfigError where its values cannot stand together."""
        own = {"name": f"{self.base.name}/{trial.name}", "eval.every": self._every}
        return with_absolute_paths(self._config.config({**trial.settings, **own}))

    def planned(self) -> list[Trial]:
        """All trials, where they do not depend on each other's results; none of optuna."""
        match self.sweep.search:
            case "grid":
                return grid(self.sweep.over)
            case "random":
                return drawn(self.sweep.over, self.num_trials, self.sweep.seed)
            case "optuna":
                return []

    def examples(self) -> list[Config]:
        """Runs that between them have every value of every list, and both ends of every range."""
        settings = [trial.settings for trial in self.planned()] or list(corners(self.sweep.over))
        return [self.run(Trial(number=1, settings=values)) for values in settings]

    def suggester(self, before: Sequence[Outcome]) -> Suggester:
        """Where the trials come from that have not ended in an earlier session."""
        from rayqd.sweep.suggest import Listed, Optuna

        ended = {outcome.trial.number: outcome for outcome in before if outcome.ended}
        if self.sweep.search == "optuna":
            known = [(o.trial, value) for o in ended.values() if (value := o.metric(self.sweep.metric)) is not None]
            unfinished = [outcome.trial for outcome in before if not outcome.ended]
            return Optuna(self.sweep, self.num_trials, known, unfinished)
        return Listed(trial for trial in self.planned() if trial.number not in ended)

    def __str__(self) -> str:
        """`16 trials of learner.lr and distill.lmbda, by optuna, asha after 6 and 18 of 50 steps`."""
        names = list(self.sweep.over)
        over = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
        parts = [f"{self.num_trials} trials of {over}", f"search {self.sweep.search}"]
        if self.halving:
            rungs = " and ".join(map(str, self.halving.rungs))
            parts.append(f"asha after {rungs} of {self.halving.num_steps} steps")
        return "; ".join(parts)
