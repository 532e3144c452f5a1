"""A trial inside Ray Tune: its evaluations are reported, and when Tune has enough it ends there."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import ray
from ray import tune

from rayqd.actors.connection import Cluster
from rayqd.cluster.placement import Placement
from rayqd.config import Config
from rayqd.rollout.worker import MakeEngine
from rayqd.sweep.trial_run import Evaluation, Means, evaluations


class TrialWorker(tune.Trainable):
    """The driver of one trial. It computes nothing; the roles of the run are processes of their own."""

    def setup(
        self,
        config: dict[str, Any],
        *,
        shared: Any,
        cluster: Cluster,
        placement: Placement,
        make_engine: MakeEngine | None,
        environment: Mapping[str, Any],
    ) -> None:
        """`config["run"]` is the trial's Config as plain values; `shared` an actor of `Shared`."""
        self._run_config = Config.model_validate(config["run"])
        self._shared = shared
        self._means = {
            "cluster": cluster, "placement": placement, "make_engine": make_engine, "environment": environment
        }  # fmt: skip
        self._evaluations = self._go()

    def step(self) -> dict[str, Any]:
        return next(self._evaluations)

    def cleanup(self) -> None:
        """Ends a trial that is not done: Tune has stopped it early."""
        self._evaluations.close()

    def _go(self) -> Generator[Evaluation]:
        data, teachers = ray.get(
            [self._shared.data.remote(self._run_config), self._shared.borrow_teachers.remote(self._run_config)]
        )
        try:
            yield from evaluations(self._run_config, Means(data=data, teachers=teachers, **self._means))
        finally:
            ray.get(self._shared.return_teachers.remote(self._run_config))
