"""The sweep inside Ray Tune: which trials, how many at a time, and which of them are stopped early."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import ray
from ray import tune

from rayqd.actors.remote import start_teachers
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.sweep.directory import SweepDirectory
from rayqd.sweep.halving import Halving
from rayqd.sweep.shared import Data, Shared
from rayqd.sweep.suggest import Suggestions
from rayqd.sweep.trials import Outcome
from rayqd.sweep.worker import TrialWorker

_SCRATCH = ".tune"
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which says something even where nothing is to be said
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial writes its own metrics
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends a sweep as it ends a run: at once, and the ledger knows the rest
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
}


def run_trials(
    suggestions: Suggestions,
    num_trials: int,
    num_concurrent: int,
    *,
    halving: Halving | None,
    ended: Sequence[Outcome],
    metric: str,
    callback: tune.Callback,
    directory: SweepDirectory,
    means: Mapping[str, Any],
) -> None:
    """At most `num_trials` suggestions, each to its end. `ended` trials count where asha compares."""
    scratch = directory.path / _SCRATCH
    scheduler = halving.scheduler(metric) if halving else None
    if scheduler:
        replay(scheduler, ended, metric)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialWorker, **means), _on_this_node()),
        tune_config=tune.TuneConfig(
            search_alg=suggestions,
            scheduler=scheduler,
            num_samples=num_trials,
            max_concurrent_trials=num_concurrent,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            callbacks=[callback],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial keeps its own
            verbose=0,
        ),
    )
    with _quiet_tune():
        shutil.rmtree(scratch, ignore_errors=True)
        tuner.fit()
        shutil.rmtree(scratch, ignore_errors=True)


def replay(scheduler: Any, ended: Sequence[Outcome], metric: str) -> None:
    """Tells `scheduler` what it would know of `ended` trials, had they run in this session."""
    for outcome in ended:
        stand_in = _StandIn(outcome.trial.name)
        scheduler.on_trial_add(None, stand_in)
        for evaluation in outcome.curve:
            if evaluation.step > 0:
                scheduler.on_trial_result(None, stand_in, asdict(evaluation))


def start_shared(sweep_name: str, placement: Placement, data: Data) -> Any:
    """The actor of `Shared`; teachers that it starts live as long as it."""

    def load(config: Config) -> Any:
        from rayqd.driver.preflight import check, load_data

        return load_data(check(config), config)

    def start(config: Config, num_before: int) -> list[Any]:
        return start_teachers(config.model_copy(update={"name": f"{sweep_name}/shared-{num_before}"}), placement)

    actor: Any = ray.remote(num_cpus=0)(Shared)
    return actor.options(name=f"rayqd/{sweep_name}/shared").remote(load, start, ray.kill, data)


class _StandIn:
    """All of a trial that a scheduler looks at."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


def _name(trial: Any) -> str:
    return trial.config["name"]


def _on_this_node() -> dict[str, float]:
    """A trial's driver needs no core, but the files of the sweep's own node."""
    node = ray.get_runtime_context().get_node_id()
    address = next(each["NodeManagerAddress"] for each in ray.nodes() if each["NodeID"] == node)
    return {"CPU": 0, f"node:{address}": 0.001}


@contextmanager
def _quiet_tune() -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= _ENVIRONMENT
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        os.environ.clear()
        os.environ |= before
