"""What a cluster is made of: nodes that run, and nodes that an autoscaler would start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MARKET = "ray.io/market-type"
SPOT = "spot"

Selector = dict[str, str]  # label to value, "!value", "in(a,b)" or "!in(a,b)", as Ray's label_selector


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes that are alike."""

    name: str
    cpus: float  # of one node
    gpus: int  # of one node
    labels: Mapping[str, str]
    running: int
    startable: int  # how many more an autoscaler would start
    always: int = 0  # how many it keeps, whatever happens

    @property
    def size(self) -> int:
        """Return the number of nodes that run or may be started."""
        return self.running + self.startable

    @property
    def is_spot(self) -> bool:
        """Return whether the cloud may take these nodes away."""
        return self.labels.get(MARKET) == SPOT

    def matches(self, selector: Selector) -> bool:
        """Return whether Ray would put an actor with this label selector here; a missing label matches a negation."""
        return all(_allows(value, self.labels.get(label)) for label, value in selector.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """All nodes of a cluster."""

    groups: tuple[NodeGroup, ...]
    max_new_nodes: int | None = None  # over all groups; None: no limit but the groups' own
    may_be_more: bool = False  # nobody said how far the cluster can grow

    @property
    def cpus(self) -> float:
        """Return the CPUs of all nodes that run or may be started."""
        return sum(group.cpus * group.size for group in self.groups)

    @property
    def gpus(self) -> int:
        """Return the GPUs of all nodes that run or may be started."""
        return sum(group.gpus * group.size for group in self.groups)

    @property
    def can_grow(self) -> bool:
        """Return whether an autoscaler may start nodes."""
        return any(group.startable for group in self.groups)


def _allows(value: str, label: str | None) -> bool:
    wanted = value.removeprefix("!")
    allowed = wanted[3:-1].split(",") if wanted.startswith("in(") and wanted.endswith(")") else [wanted]
    return (label in [name.strip() for name in allowed]) != value.startswith("!")
