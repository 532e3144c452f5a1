"""How much of the cluster each role gets and where, and a clear word when the cluster is too small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace

from rayqd.cluster.bin_packing import ROLES, PlacedWorker, PlacementPlan, RoleRequest, Share, pack
from rayqd.cluster.nodes import MARKET, SPOT, Nodes, Selector
from rayqd.config import Config
from rayqd.errors import PlacementError

_MIN_CPUS = 0.05
_MAX_WORKERS_PER_GPU = 16  # of a small model's; what they need of its memory each process checks itself
_CPUS_BESIDE_A_GPU = (1.0, 0.5, 0.1)  # the most that fits; small machines have fewer cores than a run has workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What every worker of every role asks Ray for."""

    cpus_per_worker: float
    gpus_per_worker: dict[str, float]  # by role: whole ones, a fraction where workers share a GPU, or 0
    threads_per_worker: int  # of torch and vLLM
    selectors: dict[str, list[Selector]]  # by role, for each worker the labels that its node must have
    spot_is_optional: bool  # everybody has room beside the spot nodes, too
    plan: PlacementPlan

    @property
    def env_vars(self) -> dict[str, str]:
        """Return the environment variables of every worker; Ray would set one thread for each CPU in its books."""
        return {"OMP_NUM_THREADS": str(self.threads_per_worker)}


def num_workers(config: Config) -> dict[str, int]:
    """Return the number of workers by role; no rollout workers when nothing is on-policy."""
    return {
        "rollout": config.rollout.num_workers if config.is_on_policy else 0,
        "teacher": config.num_teacher_workers,
        "learner": config.learner.num_workers,
    }


def num_gpus(config: Config) -> dict[str, int]:
    """Return the GPUs that a worker of each role is divided among, where there are any."""
    return {"rollout": config.rollout.tensor_parallel, "teacher": config.teacher.gpus_per_worker, "learner": 1}


def place(config: Config, nodes: Nodes, *, num_runs: int = 1) -> Placement:
    """Divide a cluster among the roles; raises PlacementError, naming who finds no room, if it never can be.

    With GPUs, every worker gets one, or the same share of one, or those that it is divided among. Without, the roles
    take turns (the learner waits for rollouts, rollouts for weights), so each gets a share of the CPUs in Ray's books
    and all cores of its node. The workers may be those of `num_runs` runs beside each other.
    """
    plan = best_plan(config, nodes, num_runs=num_runs)
    if plan.unplaced:
        raise PlacementError(_describe_shortage(plan, config, nodes))
    return _placement(plan, _role_requests(config), nodes)


def place_rollout_workers(config: Config, nodes: Nodes) -> Placement:
    """Divide a cluster among rollout workers that have it to themselves; raises PlacementError.

    They all generate at once: without GPUs, the workers of a node share its cores instead of taking turns.
    """
    count = config.rollout.num_workers
    requests = [RoleRequest(role="rollout", num_workers=count, selector=config.ray.selector("rollout"))]
    plan = _largest_shares(requests, _whole_gpus(config, set()), nodes)
    if plan.unplaced:
        raise PlacementError(
            f"the cluster has {nodes.cpus:g} CPUs and {nodes.gpus:g} GPUs, too few for {count} rollout workers"
            f"{''.join(_describe_divided('rollout', config, nodes))}: add nodes, or lower rollout.num_workers"
        )
    return replace(_placement(plan, requests, nodes), threads_per_worker=_threads_at_once(plan))


def _placement(plan: PlacementPlan, requests: list[RoleRequest], nodes: Nodes) -> Placement:
    share = plan.share
    steady = replace(nodes, groups=tuple(group for group in nodes.groups if not group.is_spot))
    return Placement(
        cpus_per_worker=share.cpus,
        gpus_per_worker={role: share.gpus(role) for role in ROLES},
        threads_per_worker=min(_threads_in_turn(worker, share) for worker in plan.workers),
        selectors={role: [worker.selector for worker in plan.of_role(role)] for role in ROLES},
        spot_is_optional=not pack(requests, steady, share).unplaced,
        plan=plan,
    )


def format_nodes(nodes: Mapping[str, int]) -> str:
    """Format counts by node group: `2 gpu-spot, 1 gpu-learner`."""
    return ", ".join(f"{count} {name}" for name, count in nodes.items())


def best_plan(config: Config, nodes: Nodes, *, num_runs: int = 1) -> PlacementPlan:
    """Place everybody at the largest shares at which everybody fits; else as many as fit at the smallest."""
    # Two learner workers of a run on one GPU cannot talk to each other: NCCL refuses.
    alone = {"learner"} if config.learner.num_workers > num_runs else set[str]()
    return _largest_shares(_role_requests(config), _whole_gpus(config, alone), nodes)


def _whole_gpus(config: Config, alone: Set[str]) -> dict[str, int]:
    """Return the GPUs of a worker by role, of the roles that share none: those divided among several, and `alone`."""
    return {role: count for role, count in num_gpus(config).items() if count > 1 or role in alone}


def _largest_shares(requests: list[RoleRequest], whole_gpus: Mapping[str, int], nodes: Nodes) -> PlacementPlan:
    count = sum(request.num_workers for request in requests)
    share = None
    for share in _shares(whole_gpus, nodes, count):
        parts = sum(request.num_workers * share.gpu_parts(request.role) for request in requests)
        enough = count * share.cpus <= nodes.cpus and parts <= share.per_gpu * nodes.gpus
        if enough and not (plan := pack(requests, nodes, share)).unplaced:
            return plan
    assert share is not None
    return pack(requests, nodes, share)


def _role_requests(config: Config) -> list[RoleRequest]:
    return [
        RoleRequest(role=role, num_workers=count, selector=config.ray.selector(role))
        for role, count in num_workers(config).items()
    ]


def _shares(whole_gpus: Mapping[str, int], nodes: Nodes, count: int) -> Iterator[Share]:
    """Yield the shares to try, the largest first; the roles in `whole_gpus` share no GPU."""
    if not nodes.gpus:
        return (Share(cpus=hundredths / 100, per_gpu=0) for hundredths in range(100, round(100 * _MIN_CPUS) - 1, -1))
    return (
        Share(cpus=cpus, per_gpu=per_gpu, whole_gpus=whole_gpus)
        for per_gpu in range(1, min(count, _MAX_WORKERS_PER_GPU) + 1)
        for cpus in _CPUS_BESIDE_A_GPU
    )


def _threads_in_turn(worker: PlacedWorker, share: Share) -> int:
    """Divide a node's cores among its GPUs' workers; without GPUs all cores are whose turn it is."""
    return max(1, int(worker.group.cpus / (worker.group.gpus * share.per_gpu if share.per_gpu else 1)))


def _threads_at_once(plan: PlacementPlan) -> int:
    """Divide a node's cores among its workers."""
    in_group = Counter(worker.group.name for worker in plan.workers)
    groups = [worker.group for worker in plan.workers]
    return max(1, min(int(group.cpus / math.ceil(in_group[group.name] / group.size)) for group in groups))


def _describe_shortage(plan: PlacementPlan, config: Config, nodes: Nodes) -> str:
    counts = num_workers(config)
    short = [role for role in counts if plan.unplaced[role]]
    without = ", ".join(f"{plan.unplaced[role]} of {counts[role]} {role} worker(s)" for role in short)
    all_divided = all(num_gpus(config)[role] > 1 for role in short)
    of_gpus = "" if not plan.share.per_gpu or all_divided else " and a GPU, or a share of one,"
    needs = f"{plan.share.cpus:g} CPUs{of_gpus}"
    state = " when all of its nodes run" if nodes.can_grow else ""
    return (
        f"the cluster has {nodes.cpus:g} CPUs and {nodes.gpus:g} GPUs{state}: no room for {without}, which need at "
        f"least {needs} each{''.join(_constraints(short, plan, config, nodes))}; add nodes, or lower "
        f"{' or '.join(f'{role}.num_workers' for role in short)}"
    )


def _constraints(short: list[str], plan: PlacementPlan, config: Config, nodes: Nodes) -> Iterator[str]:
    """Yield what else keeps those roles from finding room."""
    for role in short:
        if labels := config.ray.selector(role):
            yield f"; {role} only on nodes with {', '.join(f'{key}={value}' for key, value in labels.items())}"
        elif role == "learner" and any(group.is_spot for group in nodes.groups):
            yield f'; learner not on spot nodes, unless ray.learner_labels has "{MARKET}={SPOT}"'
        if plan.share.per_gpu and num_gpus(config)[role] > 1:
            yield from _describe_divided(role, config, nodes)
        elif role in plan.share.whole_gpus:
            yield f"; {role} worker(s) share no GPU with each other"
    if nodes.may_be_more:
        yield "; a cluster that can grow says how far in ray.cluster_file"


def _describe_divided(role: str, config: Config, nodes: Nodes) -> Iterator[str]:
    """Yield how many GPUs of one node a worker needs that is divided among several."""
    count = num_gpus(config)[role]
    if count > 1 and nodes.gpus:
        setting = "rollout.tensor_parallel" if role == "rollout" else f"{role}.gpus_per_worker"
        most = max(group.gpus for group in nodes.groups)
        yield f"; a {role} worker takes {count} GPUs of one node for itself ({setting}), and the largest has {most}"
