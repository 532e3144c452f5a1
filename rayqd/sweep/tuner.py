"""The sweep inside Ray Tune: which trials, how many at a time, each one's driver, and which are stopped early."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorProxy
from ray.tune.schedulers import TrialScheduler

from rayqd.actors.ray_types import kill
from rayqd.actors.remote import start_teachers
from rayqd.actors.workers import TeacherHandle
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.runs.data_file import RunData
from rayqd.sweep.halving import Halving
from rayqd.sweep.shared import Data, Rows, SharedResources
from rayqd.sweep.suggest import SuggesterSearch
from rayqd.sweep.trial_run import TrialResources, run_trial
from rayqd.sweep.trials import Outcome, TrialConfig, TrialReport

_SCRATCH = ".tune"
_NO_CONTROLLER: Any = None  # which ASHA does not look at
_TUNE_ENV_VARS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which says something even where nothing is to be said
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial writes its own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep as it ends a run: at once, and the ledger knows the rest
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}


def run_trials(
    search: SuggesterSearch,
    num_trials: int,
    num_concurrent: int,
    *,
    halving: Halving | None,
    ended: Sequence[Outcome],
    metric: str,
    callback: tune.Callback,
    directory: Path,
    shared: SharedHandle,
    resources: TrialResources,
) -> None:
    """Run at most `num_trials` of the search, each to its end. `ended` trials count where asha compares.

    Ray Tune's own files lie in a folder of `directory` meanwhile.
    """
    scratch = directory / _SCRATCH
    scheduler = halving.scheduler(metric) if halving else None
    if scheduler:
        replay_ended(scheduler, ended)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialDriver, shared=shared, resources=resources), _on_this_node()),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=scheduler,
            num_samples=num_trials,
            max_concurrent_trials=num_concurrent,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            callbacks=[callback],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial keeps its own
            verbose=0,
        ),
    )
    with _silence_tune():
        shutil.rmtree(scratch, ignore_errors=True)
        tuner.fit()
        shutil.rmtree(scratch, ignore_errors=True)


class SharedActor:
    """What the trials of a sweep have in common, where each of them can ask for it."""

    def __init__(self, resources: SharedResources[TeacherHandle]) -> None:
        self._resources = resources

    @ray.method
    def data(self, config: Config) -> Rows:
        """Return training and held-out rows."""
        return self._resources.data(config)

    @ray.method
    def summary(self, config: Config) -> RunData:
        """Return what a trial reads, for its page."""
        from rayqd.data.summary import summarize_data  # brings transformers, which nothing else here needs
        from rayqd.model.load import load_tokenizer
        from rayqd.model.source import tokenizer_directory

        directory = tokenizer_directory(config)
        return summarize_data(load_tokenizer(directory), directory, config, *self._resources.data(config))

    @ray.method
    def borrow_teachers(self, config: Config) -> list[TeacherHandle]:
        """Return the teachers of a trial, which is to give them back."""
        return self._resources.borrow_teachers(config)

    @ray.method
    def return_teachers(self, config: Config) -> None:
        """Take back what a trial borrowed."""
        self._resources.return_teachers(config)


SharedHandle = ActorProxy[SharedActor]


class TrialDriver(tune.Trainable):
    """The driver of one trial. It computes nothing; the actors of the run are processes of their own."""

    def setup(self, config: TrialConfig, *, shared: SharedHandle, resources: TrialResources) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Prepare the run of a trial."""
        self._run_config = Config.model_validate(config["run"])
        self._shared = shared
        self._resources = resources
        self._reports = self._run()

    def step(self) -> TrialReport:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run until the next evaluation."""
        return next(self._reports)

    def cleanup(self) -> None:
        """End the run if it is not done: Tune has stopped it early."""
        self._reports.close()

    def _run(self) -> Generator[TrialReport]:
        rows = self._shared.data.remote(self._run_config)
        borrowed = self._shared.borrow_teachers.remote(self._run_config)
        data, teachers = ray.get(rows), ray.get(borrowed)
        summary = self._shared.summary.remote(self._run_config)
        try:
            yield from run_trial(self._run_config, self._resources, data, teachers, partial(ray.get, summary))
        finally:
            ray.get(self._shared.return_teachers.remote(self._run_config))


def replay_ended(scheduler: TrialScheduler, ended: Sequence[Outcome]) -> None:
    """Tell `scheduler` what it would know of `ended` trials, had they run in this session."""
    for outcome in ended:
        stand_in: Any = _EndedTrial(outcome.trial.name)
        scheduler.on_trial_add(_NO_CONTROLLER, stand_in)
        for evaluation in outcome.curve:
            if evaluation.step > 0:
                last = outcome.last if evaluation.step == outcome.step else None  # told at its end, as a trial does
                told = {**asdict(last or evaluation), "step": evaluation.step}
                scheduler.on_trial_result(_NO_CONTROLLER, stand_in, told)


def start_shared_resources(sweep_name: str, placement: Placement, data: Data) -> SharedHandle:
    """Start the actor of what the trials share; teachers that it starts live as long as it."""

    def load(config: Config) -> Rows:
        from rayqd.driver.preflight import check, load_data

        return load_data(check(config), config)

    def start(config: Config, num_before: int) -> list[TeacherHandle]:
        return start_teachers(config.model_copy(update={"name": f"{sweep_name}/shared-{num_before}"}), placement)

    actor = ray.remote(SharedActor).options(name=f"rayqd/{sweep_name}/shared", num_cpus=0)
    return actor.remote(SharedResources(load, start, kill, data))


class _EndedTrial:
    """All of a trial that a scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _trial_name(trial: Any) -> str:
    return trial.config["name"]


def _on_this_node() -> dict[str, float]:
    """Return the resources of a trial's driver: no core, but the files of the sweep's own node."""
    node = ray.get_runtime_context().get_node_id()
    address = next(alive["NodeManagerAddress"] for alive in ray.nodes() if alive["NodeID"] == node)
    return {"CPU": 0, f"node:{address}": 0.001}


@contextmanager
def _silence_tune() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= _TUNE_ENV_VARS
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.clear()
        os.environ |= before
