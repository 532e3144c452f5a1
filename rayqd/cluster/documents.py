"""The types of cluster files: any YAML, and the keys that are read of a file that Ray's or KubeRay's schema admits."""

from __future__ import annotations

from datetime import date
from typing import NotRequired, TypeAlias, TypedDict

YamlValue: TypeAlias = "str | int | float | bool | date | list[YamlValue] | dict[str, YamlValue] | None"
YamlMapping: TypeAlias = dict[str, YamlValue]


class NodeType(TypedDict):
    """A node type of `ray up`, with the defaults that Ray fills in."""

    min_workers: int
    max_workers: int
    resources: NotRequired[dict[str, float] | None]
    labels: NotRequired[dict[str, str] | None]
    node_config: NotRequired[YamlMapping | None]  # whatever the cloud takes


class Provider(TypedDict):
    """The cloud of `ray up`."""

    type: str


class RayUpFile(TypedDict):
    """A cluster.yaml, with the defaults that Ray fills in."""

    provider: Provider
    available_node_types: dict[str, NodeType]
    head_node_type: str
    max_workers: int


class AutoscalerOptions(TypedDict, total=False):
    """KubeRay's AutoscalerOptions."""

    version: str


class HeadGroupSpec(TypedDict):
    """KubeRay's HeadGroupSpec."""

    rayStartParams: NotRequired[dict[str, str]]


class WorkerGroupSpec(HeadGroupSpec):
    """KubeRay's WorkerGroupSpec."""

    groupName: str
    replicas: NotRequired[int]
    minReplicas: NotRequired[int]
    maxReplicas: NotRequired[int]
    numOfHosts: NotRequired[int]


class RayClusterSpec(TypedDict):
    """KubeRay's RayClusterSpec."""

    headGroupSpec: HeadGroupSpec
    workerGroupSpecs: NotRequired[list[WorkerGroupSpec]]
    rayVersion: NotRequired[str]
    enableInTreeAutoscaling: NotRequired[bool]
    autoscalerOptions: NotRequired[AutoscalerOptions]
