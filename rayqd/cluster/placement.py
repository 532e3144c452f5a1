"""How much of the cluster each role gets and where, and a clear word when the cluster is too small."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rayqd.cluster.bin_packing import ROLES, Seating, Share, Wish, seat
from rayqd.cluster.nodes import MARKET, SPOT, Nodes, Selector
from rayqd.config import Config
from rayqd.errors import PlacementError

_LEAST_CPUS = 0.05
_MOST_PER_GPU = 8  # workers; beyond that a GPU has no memory for any of them
_CPUS_BESIDE_A_GPU = (1.0, 0.5, 0.1)  # the most that fits; small machines have fewer cores than a run has workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What every worker of every role asks Ray for."""

    cpus_each: float
    gpus_each: dict[str, float]  # by role: 1, a fraction where workers share a GPU, or 0
    threads_each: int  # of torch and vLLM
    selectors: dict[str, list[Selector]]  # by role, for each worker the labels that its node must have
    spot_is_optional: bool  # everybody has room beside the spot nodes, too
    seating: Seating

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


def place(config: Config, nodes: Nodes, *, num_runs: int = 1) -> Placement:
    """Divide a cluster among the roles; raises PlacementError, naming who finds no room, if it never can be.

    With GPUs, every worker gets one, or the same share of one. Without, the roles take turns (the learner waits for
    rollouts, rollouts for weights), so each gets a share of the CPUs in Ray's books and all cores of its node.
    The workers may be those of `num_runs` runs beside each other.
    """
    seating = best_seating(config, nodes, num_runs=num_runs)
    if seating.missing:
        raise PlacementError(_too_small(seating, config, nodes))
    return _placement(seating, _wishes(config), nodes)


def place_writers(config: Config, nodes: Nodes) -> Placement:
    """The same for rollout workers that have the cluster to themselves.

    They all write at once: where there are no GPUs, the workers of a node share its cores instead of taking turns.
    """
    count = config.rollout.num_workers
    wishes = [Wish(role="rollout", num_workers=count, selector=config.ray.selector("rollout"))]
    seating = _best(wishes, frozenset(), nodes)
    if seating.missing:
        raise PlacementError(
            f"the cluster has {nodes.cpus:g} CPUs and {nodes.gpus:g} GPUs, too few for {count} rollout workers: "
            "add nodes, or lower rollout.num_workers"
        )
    placement = _placement(seating, wishes, nodes)
    a_node = Counter(seat.group.name for seat in seating.seats)
    threads = min(int(each.group.cpus / math.ceil(a_node[each.group.name] / each.group.size)) for each in seating.seats)
    return replace(placement, threads_each=max(1, threads))


def _placement(seating: Seating, wishes: list[Wish], nodes: Nodes) -> Placement:
    share = seating.share
    steady = replace(nodes, groups=tuple(group for group in nodes.groups if not group.is_spot))
    return Placement(
        cpus_each=share.cpus,
        gpus_each={role: share.gpus(role) for role in ROLES},
        threads_each=min(_threads(each.group.cpus, each.group.gpus, share) for each in seating.seats),
        selectors={role: [each.selector for each in seating.of(role)] for role in ROLES},
        spot_is_optional=not seat(wishes, steady, share).missing,
        seating=seating,
    )


def nodes_text(nodes: Mapping[str, int]) -> str:
    """`2 gpu-spot, 1 gpu-learner`"""
    return ", ".join(f"{count} {name}" for name, count in nodes.items())


def best_seating(config: Config, nodes: Nodes, *, num_runs: int = 1) -> Seating:
    """Everybody, at the largest shares at which everybody finds room; else those who find room at the smallest."""
    # Two learner workers of a run on one GPU cannot talk to each other: NCCL refuses.
    whole = frozenset({"learner"} if config.learner.num_workers > num_runs else {})
    return _best(_wishes(config), whole, nodes)


def _best(wishes: list[Wish], whole: frozenset[str], nodes: Nodes) -> Seating:
    count = sum(wish.num_workers for wish in wishes)
    share = None
    for share in _shares(whole, nodes, count):
        enough = count * share.cpus <= nodes.cpus and count <= max(1, share.per_gpu) * (nodes.gpus or count)
        if enough and not (seating := seat(wishes, nodes, share)).missing:
            return seating
    assert share is not None
    return seat(wishes, nodes, share)


def _wishes(config: Config) -> list[Wish]:
    return [
        Wish(role=role, num_workers=count, selector=config.ray.selector(role))
        for role, count in num_workers(config).items()
    ]


def _shares(whole: frozenset[str], nodes: Nodes, count: int) -> Iterator[Share]:
    """The largest first; the roles in `whole` share no GPU."""
    if not nodes.gpus:
        return (Share(cpus=hundredths / 100, per_gpu=0) for hundredths in range(100, round(100 * _LEAST_CPUS) - 1, -1))
    return (
        Share(cpus=cpus, per_gpu=per_gpu, whole_gpu=whole)
        for per_gpu in range(1, min(count, _MOST_PER_GPU) + 1)
        for cpus in _CPUS_BESIDE_A_GPU
    )


def _threads(cpus: float, gpus: int, share: Share) -> int:
    return max(1, int(cpus / (gpus * share.per_gpu if share.per_gpu else 1)))


def _too_small(seating: Seating, config: Config, nodes: Nodes) -> str:
    counts = num_workers(config)
    short = [role for role in counts if seating.missing[role]]
    without = ", ".join(f"{seating.missing[role]} of {counts[role]} {role} worker(s)" for role in short)
    each = f"{seating.share.cpus:g} CPUs" + (" and a GPU, or a share of one," if seating.share.per_gpu else "")
    state = " when all of its nodes run" if nodes.can_grow else ""
    return (
        f"the cluster has {nodes.cpus:g} CPUs and {nodes.gpus:g} GPUs{state}: no room for {without}, which need at "
        f"least {each} each{''.join(_conditions(short, seating, config, nodes))}; add nodes, or lower "
        f"{' or '.join(f'{role}.num_workers' for role in short)}"
    )


def _conditions(short: list[str], seating: Seating, config: Config, nodes: Nodes) -> Iterator[str]:
    """What else stands between those roles and a place."""
    for role in short:
        if labels := config.ray.selector(role):
            yield f"; {role} only on nodes with {', '.join(f'{key}={value}' for key, value in labels.items())}"
        elif role == "learner" and any(group.is_spot for group in nodes.groups):
            yield f'; learner not on spot nodes, unless ray.learner_labels has "{MARKET}={SPOT}"'
        if role in seating.share.whole_gpu:
            yield f"; {role} worker(s) share no GPU with each other"
    if nodes.may_be_more:
        yield "; a cluster that can grow says how far in ray.cluster_file"
