"""How much of the cluster each role gets, and a clear word when the cluster is too small."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayqd.config import Config
from rayqd.errors import PlacementError

_LEAST_CPUS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What every worker of every role asks Ray for."""

    cpus_each: float
    gpus_each: float  # 1, a fraction where roles share a GPU, or 0
    threads_each: int  # of torch and vLLM

    @property
    def environment(self) -> dict[str, str]:
        """Of every worker's process; Ray would set one thread for each CPU in its books."""
        return {"OMP_NUM_THREADS": str(self.threads_each)}


def num_workers(config: Config) -> dict[str, int]:
    """Workers by role; no rollout workers when nothing is on-policy."""
    return {
        "rollout": config.rollout.num_workers if config.distill.lmbda > 0 else 0,
        "teacher": config.teacher.num_workers,
        "learner": config.learner.num_workers,
    }


def place(config: Config, cpus: float, gpus: float, cores_per_node: int) -> Placement:
    """Divide a cluster of `cpus` and `gpus` among the roles.

    With GPUs, every worker gets one, or the same share of one. Without, the roles take turns (the learner waits for
    rollouts, rollouts for weights), so each gets a share of the CPUs in Ray's books and all cores of its node.
    """
    count = sum(num_workers(config).values())
    if gpus >= 1:
        per_gpu = math.ceil(count / gpus)
        placement = Placement(cpus_each=1, gpus_each=1 / per_gpu, threads_each=max(1, int(cores_per_node / per_gpu)))
    else:
        share = math.floor(100 * min(1.0, cpus / count)) / 100
        placement = Placement(cpus_each=share, gpus_each=0, threads_each=max(1, cores_per_node))
    if placement.cpus_each < _LEAST_CPUS or placement.cpus_each * count > cpus:
        raise PlacementError(_too_small(config, placement, cpus, gpus))
    return placement


def place_writers(config: Config, cpus: float, gpus: float, cores_per_node: int) -> Placement:
    """Divide a cluster among rollout workers that have it to themselves.

    They all write at once: where there are no GPUs, the workers of a node share its cores instead of taking turns.
    """
    count = config.rollout.num_workers
    per_node = math.ceil(count * cores_per_node / cpus)
    threads = max(1, int(cores_per_node / per_node))
    if gpus >= 1:
        placement = Placement(cpus_each=1, gpus_each=1 / math.ceil(count / gpus), threads_each=threads)
    else:
        share = math.floor(100 * min(1.0, cpus / count)) / 100
        placement = Placement(cpus_each=share, gpus_each=0, threads_each=threads)
    if placement.cpus_each < _LEAST_CPUS or placement.cpus_each * count > cpus:
        raise PlacementError(
            f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs, too few for {count} rollout workers: "
            "add nodes, or lower rollout.num_workers"
        )
    return placement


def _too_small(config: Config, placement: Placement, cpus: float, gpus: float) -> str:
    needs = ", ".join(f"{n} {role} worker(s)" for role, n in num_workers(config).items() if n)
    each = max(placement.cpus_each, _LEAST_CPUS)
    return (
        f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs; {needs} need at least {each:g} CPUs each: "
        "add nodes, or lower rollout.num_workers, teacher.num_workers or learner.num_workers"
    )
