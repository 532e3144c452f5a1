"""How many trials run beside each other, and what each of their workers gets of the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rayqd.actors.connection import Cluster
from rayqd.cluster.placement import Placement, num_workers, place
from rayqd.config import Config
from rayqd.sweep.shared import teacher_key


def concurrency(trials: Sequence[Config], cluster: Cluster, num_trials: int) -> int:
    """The most of `trials`, at least 1, whose workers have a GPU each, or where there are none a CPU each."""
    nodes = cluster.nodes
    units = nodes.gpus or nodes.cpus
    fitting = 1
    while fitting < num_trials and sum(num_workers(side_by_side(trials, fitting + 1)).values()) <= units:
        fitting += 1
    return fitting


def placement_beside(trials: Sequence[Config], num_concurrent: int, cluster: Cluster) -> Placement:
    """What every worker of every trial asks for, so that `num_concurrent` of `trials` and their teachers fit."""
    together = side_by_side(trials, num_concurrent)
    return place(together, cluster.nodes, num_runs=num_concurrent)


def side_by_side(trials: Iterable[Config], num_concurrent: int) -> Config:
    """The run whose workers are those of `num_concurrent` trials, each as large as the largest, on shared teachers."""
    trials = list(trials)
    first = trials[0]
    num_teachers = min(num_concurrent, len({teacher_key(trial) for trial in trials}))
    return first.model_copy(
        update={
            "distill": first.distill.model_copy(update={"lmbda": max(trial.distill.lmbda for trial in trials)}),
            "rollout": _times(num_concurrent, [trial.rollout for trial in trials]),
            "learner": _times(num_concurrent, [trial.learner for trial in trials]),
            "teacher": _times(num_teachers, [trial.teacher for trial in trials]),
        }
    )


def _times(factor: int, settings: Sequence[Any]) -> Any:
    most = max(role.num_workers for role in settings)
    return settings[0].model_copy(update={"num_workers": factor * most})
