"""How many trials run beside each other, and what each of their workers gets of the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rayqd.cluster.nodes import Nodes
from rayqd.cluster.placement import Placement, num_workers, place
from rayqd.config import Config
from rayqd.config.sections import LearnerConfig, RolloutConfig, TeacherConfig
from rayqd.sweep.shared import teacher_key

_RoleConfig = TypeVar("_RoleConfig", RolloutConfig, TeacherConfig, LearnerConfig)


def choose_concurrency(trials: Sequence[Config], nodes: Nodes, num_trials: int) -> int:
    """Return how many of `trials`, at least 1, have a GPU for each worker, or where there are none a CPU."""
    units = nodes.gpus or nodes.cpus
    fitting = 1
    while fitting < num_trials and sum(num_workers(combine_trials(trials, fitting + 1)).values()) <= units:
        fitting += 1
    return fitting


def place_concurrent_trials(trials: Sequence[Config], num_concurrent: int, nodes: Nodes) -> Placement:
    """Divide a cluster so that `num_concurrent` of `trials` and their teachers fit; raises PlacementError."""
    combined = combine_trials(trials, num_concurrent)
    return place(combined, nodes, num_runs=num_concurrent)


def combine_trials(trials: Iterable[Config], num_concurrent: int) -> Config:
    """Return the run that has the workers of `num_concurrent` trials as large as the largest, on shared teachers."""
    trials = list(trials)
    first = trials[0]
    num_teachers = min(num_concurrent, len({teacher_key(trial) for trial in trials}))
    return first.model_copy(
        update={
            "distill": first.distill.model_copy(update={"lmbda": max(trial.distill.lmbda for trial in trials)}),
            "rollout": _multiply_workers(num_concurrent, [trial.rollout for trial in trials]),
            "learner": _multiply_workers(num_concurrent, [trial.learner for trial in trials]),
            "teacher": _multiply_workers(num_teachers, [trial.teacher for trial in trials]),
        }
    )


def _multiply_workers(factor: int, sections: Sequence[_RoleConfig]) -> _RoleConfig:
    most = max(section.num_workers for section in sections)
    return sections[0].model_copy(update={"num_workers": factor * most})
