"""What Ray Tune is to try next: trials that were begun and did not end, then new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ray.tune.search import Searcher

from rayqd.config.sections.sweep import SweepConfig
from rayqd.sweep.space import make_tune_space, point_at, settings_at
from rayqd.sweep.trials import Trial, TrialConfig


class Suggester(Protocol):
    """Where trials come from; `tune_id` is Ray Tune's name for one, `result` what it reported last."""

    def next(self, tune_id: str) -> Trial | None:
        """Return the next trial, None when there is none left."""
        ...

    def report(self, tune_id: str, result: Mapping[str, object]) -> None:
        """Hear of an evaluation."""
        ...

    def end(self, tune_id: str, result: Mapping[str, object] | None, *, failed: bool) -> None:
        """Hear that the trial has ended."""
        ...


class FixedTrials:
    """Trials that are known from the start: of a grid, or drawn at random."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials = iter(trials)

    def next(self, tune_id: str) -> Trial | None:
        """Return the next of the list."""
        return next(self._trials, None)

    def report(self, tune_id: str, result: Mapping[str, object]) -> None:
        """Ignore it: no trial depends on another's result."""

    def end(self, tune_id: str, result: Mapping[str, object] | None, *, failed: bool) -> None:
        """Ignore it, likewise."""


class OptunaTrials:
    """Optuna's TPE, which learns from every trial that ended, also in an earlier session of the sweep."""

    def __init__(
        self, sweep: SweepConfig, num_trials: int, ended: Sequence[tuple[Trial, float]], unfinished: Sequence[Trial]
    ) -> None:
        """Learn from `ended` trials with their metric, and begin with the `unfinished` ones."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._over = sweep.over
        num_begun = len(ended) + len(unfinished)
        self._trials = _number_trials(unfinished, num_begun, num_trials)
        self._search = OptunaSearch(
            OptunaSearch.convert_search_space(make_tune_space(sweep.over)),
            metric=sweep.metric,
            mode="min",
            points_to_evaluate=[point_at(trial.settings, sweep.over) for trial in unfinished],
            seed=sweep.seed + num_begun,  # one seed would draw once more what was drawn before
        )
        for trial, value in ended:
            self._search.add_evaluated_point(point_at(trial.settings, sweep.over), value)

    def next(self, tune_id: str) -> Trial | None:
        """Return an unfinished trial, or a new one where Optuna expects improvement."""
        trial = next(self._trials, None)
        if trial is None:
            return None
        point = self._search.suggest(tune_id)
        assert isinstance(point, dict)
        return trial if trial.settings else Trial(number=trial.number, settings=settings_at(point, self._over))

    def report(self, tune_id: str, result: Mapping[str, object]) -> None:
        """Tell Optuna of an evaluation."""
        self._search.on_trial_result(tune_id, dict(result))

    def end(self, tune_id: str, result: Mapping[str, object] | None, *, failed: bool) -> None:
        """Tell Optuna what the trial came to."""
        self._search.on_trial_complete(tune_id, dict(result) if result else None, error=failed)


class SuggesterSearch(Searcher):
    """A `Suggester` as Ray Tune's search algorithm.

    `begin` hears of each trial and returns its `config` for Tune, or None where the settings refuse it.
    """

    def __init__(self, suggester: Suggester, begin: Callable[[Trial], TrialConfig | None], metric: str) -> None:
        super().__init__(metric=metric, mode="min")
        self._suggester = suggester
        self._begin = begin

    def suggest(self, trial_id: str) -> TrialConfig | str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the next trial that the settings take, or FINISHED."""
        while (trial := self._suggester.next(trial_id)) is not None:
            if (config := self._begin(trial)) is not None:
                return config
            self._suggester.end(trial_id, None, failed=True)
        return self.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, object]) -> None:
        """Pass an evaluation on."""
        self._suggester.report(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, object] | None = None, error: bool = False) -> None:
        """Pass a trial's end on."""
        self._suggester.end(trial_id, result, failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Save an empty file: the sweep's ledger and its trials' directories say all there is to know."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a resumed sweep starts from its ledger."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, object]:
        return {}  # Tune writes a copy of everything it is given, for a restore of its own


def _number_trials(unfinished: Sequence[Trial], num_begun: int, num_trials: int) -> Iterator[Trial]:
    """Yield the unfinished trials, and then numbers without settings."""
    yield from unfinished
    yield from (Trial(number=number, settings={}) for number in range(num_begun + 1, num_trials + 1))
