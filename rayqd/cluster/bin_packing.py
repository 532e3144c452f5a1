"""Workers onto nodes, one after the other, GPU by GPU; nodes that do not run yet are started where that is allowed.

Spot nodes can be taken away at any moment. The learner holds the run's state, so it goes to one only where there is no
other; rollouts and teachers, whose work can be asked for again, go there first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rayqd.cluster.nodes import MARKET, SPOT, NodeGroup, Nodes, Selector

ROLES = ("learner", "teacher", "rollout")  # in the order in which they choose
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The workers of one role."""

    role: str
    num_workers: int
    selector: Selector  # labels that its nodes must have, whatever else


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How finely nodes are divided."""

    cpus: float  # of every worker
    per_gpu: int  # workers that share a GPU; 0 without GPUs
    whole_gpu: frozenset[str] = frozenset()  # roles that share theirs with nobody

    def parts(self, role: str) -> int:
        """What a worker takes of a GPU, in `per_gpu`-ths."""
        return self.per_gpu if role in self.whole_gpu else min(1, self.per_gpu)

    def gpus(self, role: str) -> float:
        return self.parts(role) / self.per_gpu if self.per_gpu else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A worker's place."""

    role: str
    rank: int
    group: NodeGroup
    selector: Selector  # what the worker asks Ray for, so as to get it


@dataclass(frozen=True, slots=True, kw_only=True)
class Seating:
    share: Share
    seats: tuple[Seat, ...]
    missing: Counter[str]  # workers without a place, by role
    started: Counter[str]  # nodes that must be started first, by group

    def of(self, role: str) -> list[Seat]:
        return [seat for seat in self.seats if seat.role == role]


def seat(wishes: Sequence[Wish], nodes: Nodes, share: Share) -> Seating:
    """As many workers as find room at this `share`; who asks for particular nodes chooses before who does not."""
    rooms = _Rooms(nodes, share)
    seats: list[Seat] = []
    missing: Counter[str] = Counter()
    for wish in sorted(wishes, key=lambda wish: (not wish.selector, ROLES.index(wish.role))):
        able = [group for group in nodes.groups if group.matches(wish.selector) and _holds_one(group, share)]
        choice = _in_order_of_preference(wish.role, able)
        for rank in range(wish.num_workers):
            group = next((each for each in choice if rooms.take(each, share.parts(wish.role))), None)
            if group is None:
                missing[wish.role] += wish.num_workers - rank
                break
            seats.append(
                Seat(role=wish.role, rank=rank, group=group, selector=wish.selector | _market(wish, group, able))
            )
    return Seating(share=share, seats=tuple(seats), missing=missing, started=rooms.started)


def _holds_one(group: NodeGroup, share: Share) -> bool:
    return group.size > 0 and group.cpus + _TOLERANCE >= share.cpus and (group.gpus > 0 or not share.per_gpu)


def _in_order_of_preference(role: str, groups: list[NodeGroup]) -> list[NodeGroup]:
    if role == "learner":
        return [group for group in groups if not group.is_spot] or groups
    return sorted(groups, key=lambda group: not group.is_spot)


def _market(wish: Wish, group: NodeGroup, able: list[NodeGroup]) -> Selector:
    """Only where there is a choice, and the configuration has not made it."""
    if MARKET in wish.selector or len({each.is_spot for each in able}) == 1:
        return {}
    return {MARKET: SPOT if group.is_spot else f"!{SPOT}"}


class _Node:
    def __init__(self, group: NodeGroup, share: Share) -> None:
        self.group = group
        self._cpus = group.cpus
        self._gpus = [share.per_gpu] * group.gpus  # parts that are free of each

    def take(self, cpus: float, parts: int) -> bool:
        """Give a worker its place, if there is one; its parts are of one GPU."""
        if self._cpus + _TOLERANCE < cpus:
            return False
        if parts:
            gpu = next((i for i, free in enumerate(self._gpus) if free >= parts), None)
            if gpu is None:
                return False
            self._gpus[gpu] -= parts
        self._cpus -= cpus
        return True


class _Rooms:
    """The nodes in use."""

    def __init__(self, nodes: Nodes, share: Share) -> None:
        self._share = share
        self._nodes = [_Node(group, share) for group in nodes.groups for _ in range(group.running)]
        self._new_nodes_left = math.inf if nodes.max_new_nodes is None else nodes.max_new_nodes
        self.started: Counter[str] = Counter()

    def take(self, group: NodeGroup, parts: int) -> bool:
        if any(node.take(self._share.cpus, parts) for node in self._nodes if node.group is group):
            return True
        if self.started[group.name] >= group.startable or self.started.total() >= self._new_nodes_left:
            return False
        node = _Node(group, self._share)
        self._nodes.append(node)
        self.started[group.name] += 1
        return node.take(self._share.cpus, parts)
