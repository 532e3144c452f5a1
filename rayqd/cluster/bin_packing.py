"""First-fit bin packing of workers onto nodes, GPU by GPU; nodes that do not run yet are started where that is allowed.

Spot nodes can be taken away at any moment. The learner holds the run's state, so it goes to one only where there is no
other; rollouts and teachers, whose work can be asked for again, go there first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rayqd.cluster.nodes import MARKET, SPOT, NodeGroup, Nodes, Selector

ROLES = ("learner", "teacher", "rollout")  # in the order in which they choose
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRequest:
    """The workers of one role, before they have a node."""

    role: str
    num_workers: int
    selector: Selector  # labels that its nodes must have, whatever else


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The CPUs, and the fraction of a GPU or the whole GPUs, that a worker gets."""

    cpus: float  # of every worker
    per_gpu: int  # workers that share a GPU; 0 without GPUs
    whole_gpus: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # of a worker that shares its GPUs with nobody

    def gpu_parts(self, role: str) -> int:
        """Return how many parts a worker takes; `per_gpu` equal ones are a GPU."""
        return self.per_gpu * self.whole_gpus[role] if role in self.whole_gpus else min(1, self.per_gpu)

    def gpus(self, role: str) -> float:
        """Return a worker's GPUs as Ray counts them: a fraction of one, whole ones, or 0."""
        return self.gpu_parts(role) / self.per_gpu if self.per_gpu else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWorker:
    """A worker and the kind of node that it has room on."""

    role: str
    rank: int
    group: NodeGroup
    selector: Selector  # what the worker asks Ray for, so as to get it


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """Which workers go where, who finds no room, and which nodes must be started."""

    share: Share
    workers: tuple[PlacedWorker, ...]
    unplaced: Counter[str]  # workers without room, by role
    nodes_to_start: Counter[str]  # before all placed workers have room, by group

    def of_role(self, role: str) -> list[PlacedWorker]:
        """Return the placed workers of a role by rank."""
        return [worker for worker in self.workers if worker.role == role]


def pack(requests: Sequence[RoleRequest], nodes: Nodes, share: Share) -> PlacementPlan:
    """Place as many workers as find room at this `share`; who asks for particular nodes chooses before who does not."""
    capacity = _Capacity(nodes, share)
    workers: list[PlacedWorker] = []
    unplaced: Counter[str] = Counter()
    for request in sorted(requests, key=lambda request: (not request.selector, ROLES.index(request.role))):
        able = [
            group
            for group in nodes.groups
            if group.matches(request.selector) and _holds_one(group, share, request.role)
        ]
        choice = _order_by_preference(request.role, able)
        for rank in range(request.num_workers):
            group = next((group for group in choice if capacity.take(group, share.gpu_parts(request.role))), None)
            if group is None:
                unplaced[request.role] += request.num_workers - rank
                break
            selector = request.selector | _market_selector(request, group, able)
            workers.append(PlacedWorker(role=request.role, rank=rank, group=group, selector=selector))
    return PlacementPlan(share=share, workers=tuple(workers), unplaced=unplaced, nodes_to_start=capacity.nodes_to_start)


def _holds_one(group: NodeGroup, share: Share, role: str) -> bool:
    return group.size > 0 and group.cpus + _TOLERANCE >= share.cpus and group.gpus + _TOLERANCE >= share.gpus(role)


def _order_by_preference(role: str, groups: list[NodeGroup]) -> list[NodeGroup]:
    if role == "learner":
        return [group for group in groups if not group.is_spot] or groups
    return sorted(groups, key=lambda group: not group.is_spot)


def _market_selector(request: RoleRequest, group: NodeGroup, able: list[NodeGroup]) -> Selector:
    """Select spot or not, only where there is a choice and the configuration has not made it."""
    if MARKET in request.selector or len({other.is_spot for other in able}) == 1:
        return {}
    return {MARKET: SPOT if group.is_spot else f"!{SPOT}"}


class _Node:
    def __init__(self, group: NodeGroup, share: Share) -> None:
        self.group = group
        self._per_gpu = share.per_gpu
        self._cpus = group.cpus
        self._free_parts = [share.per_gpu] * group.gpus  # of each GPU

    def take(self, cpus: float, parts: int) -> bool:
        """Take a worker's CPUs and its parts of one GPU, or its whole GPUs, if they are free; return if they were."""
        if self._cpus + _TOLERANCE < cpus:
            return False
        if parts:
            num_gpus, each = max(1, parts // self._per_gpu), min(parts, self._per_gpu)
            free = [i for i, free in enumerate(self._free_parts) if free >= each][:num_gpus]
            if len(free) < num_gpus:
                return False
            for i in free:
                self._free_parts[i] -= each
        self._cpus -= cpus
        return True


class _Capacity:
    """What is free on the nodes that run and on those that had to be started."""

    def __init__(self, nodes: Nodes, share: Share) -> None:
        self._share = share
        self._nodes = [_Node(group, share) for group in nodes.groups for _ in range(group.running)]
        self._new_nodes_left = math.inf if nodes.max_new_nodes is None else nodes.max_new_nodes
        self.nodes_to_start: Counter[str] = Counter()

    def take(self, group: NodeGroup, parts: int) -> bool:
        """Take a worker's share of a node of `group`, starting one if need be; return whether there was room."""
        if any(node.take(self._share.cpus, parts) for node in self._nodes if node.group is group):
            return True
        if not self._may_start(group):
            return False
        node = _Node(group, self._share)
        self._nodes.append(node)
        self.nodes_to_start[group.name] += 1
        return node.take(self._share.cpus, parts)

    def _may_start(self, group: NodeGroup) -> bool:
        started = self.nodes_to_start
        return started[group.name] < group.startable and started.total() < self._new_nodes_left
