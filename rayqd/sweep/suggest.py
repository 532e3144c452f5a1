"""What Ray Tune is to try next: trials that were begun and did not end, then new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray.tune.search import Searcher

from rayqd.config.sections.sweep import SweepConfig
from rayqd.sweep.space import point_of, settings_at, tune_space
from rayqd.sweep.trials import Trial


class Suggester(Protocol):
    """Where trials come from; `tune_id` is Ray Tune's name for one."""

    def next(self, tune_id: str) -> Trial | None: ...
    def result(self, tune_id: str, result: Mapping[str, Any]) -> None: ...
    def end(self, tune_id: str, result: Mapping[str, Any] | None, *, failed: bool) -> None: ...


class Listed:
    """Trials that are known from the start: of a grid, or drawn at random."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._trials = iter(trials)

    def next(self, tune_id: str) -> Trial | None:
        return next(self._trials, None)

    def result(self, tune_id: str, result: Mapping[str, Any]) -> None:
        pass

    def end(self, tune_id: str, result: Mapping[str, Any] | None, *, failed: bool) -> None:
        pass


class Optuna:
    """Optuna's TPE, which learns from every trial that ended, also in an earlier session of the sweep."""

    def __init__(
        self, sweep: SweepConfig, num_trials: int, ended: Sequence[tuple[Trial, float]], unfinished: Sequence[Trial]
    ) -> None:
        """`ended`: trials with their metric; `unfinished` ones come first."""
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._over = sweep.over
        num_begun = len(ended) + len(unfinished)
        self._trials = _numbered(unfinished, num_begun, num_trials)
        self._search = OptunaSearch(
            OptunaSearch.convert_search_space(tune_space(sweep.over)),
            metric=sweep.metric,
            mode="min",
            points_to_evaluate=[point_of(trial.settings, sweep.over) for trial in unfinished],
            seed=sweep.seed + num_begun,  # one seed would draw once more what was drawn before
        )
        for trial, value in ended:
            self._search.add_evaluated_point(point_of(trial.settings, sweep.over), value)

    def next(self, tune_id: str) -> Trial | None:
        trial = next(self._trials, None)
        if trial is None:
            return None
        point = self._search.suggest(tune_id)
        assert isinstance(point, dict)
        return trial if trial.settings else Trial(number=trial.number, settings=settings_at(point, self._over))

    def result(self, tune_id: str, result: Mapping[str, Any]) -> None:
        self._search.on_trial_result(tune_id, dict(result))

    def end(self, tune_id: str, result: Mapping[str, Any] | None, *, failed: bool) -> None:
        self._search.on_trial_complete(tune_id, dict(result) if result else None, error=failed)


class Suggestions(Searcher):
    """A `Suggester` as Ray Tune wants it.

    `begin` hears of each trial and returns its `config` for Tune, or None where the settings refuse it.
    """

    def __init__(self, suggester: Suggester, begin: Callable[[Trial], dict[str, Any] | None], metric: str) -> None:
        super().__init__(metric=metric, mode="min")
        self._suggester = suggester
        self._begin = begin

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # pyright: ignore[reportIncompatibleMethodOverride]
        while (trial := self._suggester.next(trial_id)) is not None:
            if (config := self._begin(trial)) is not None:
                return config
            self._suggester.end(trial_id, None, failed=True)
        return self.FINISHED

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._suggester.result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._suggester.end(trial_id, result, failed=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's ledger and its trials' directories say all there is to know."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes a copy of everything it is given, for a restore of its own


def _numbered(unfinished: Sequence[Trial], num_begun: int, num_trials: int) -> Iterator[Trial]:
    """The unfinished trials, and then numbers without settings."""
    yield from unfinished
    yield from (Trial(number=number, settings={}) for number in range(num_begun + 1, num_trials + 1))
