"""Cluster files: the cluster.yaml of `ray up`, and KubeRay's RayJob and RayCluster.

What nodes they promise is read by Ray's own code, the one that its autoscalers run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import yaml

from rayqd.cluster.documents import NodeType, RayClusterSpec, RayUpFile, WorkerGroupSpec, YamlMapping, YamlValue
from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.config.missing import describe_missing
from rayqd.errors import ConfigError

KUBERAY_KINDS = ("RayJob", "RayCluster")
KUBERAY_HEAD = "headgroup"  # what KubeRay calls the head's node type
_KUBERAY_DEFAULTS: WorkerGroupSpec = {  # of its CRD
    "groupName": "",
    "minReplicas": 0,
    "maxReplicas": 2**31 - 1,
    "rayStartParams": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """A cluster file as it was read; the typed views hold once `check.find_errors` finds none."""

    path: Path
    kind: str  # "ray up", or what KubeRay calls it
    document: YamlMapping
    lines: Mapping[tuple[str | int, ...], int]  # of every key, counted from 1

    def location(self, *keys: str | int) -> str:
        """Return `cluster.yaml:12`, the line of the key, or of the innermost around it that is there."""
        line = next((self.lines[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in self.lines), 1)
        return f"{self.path}:{line}"

    @property
    def ray_up(self) -> RayUpFile:
        """Return the document of `ray up`."""
        return cast(RayUpFile, self.document)

    @property
    def ray_cluster(self) -> RayClusterSpec:
        """Return KubeRay's RayClusterSpec."""
        spec = cast(YamlMapping, self.document["spec"])
        return cast(RayClusterSpec, spec["rayClusterSpec"] if self.kind == "RayJob" else spec)


def read_cluster_file(path: Path) -> ClusterFile:
    """Read a file without checking it; of several documents the one that is a cluster. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as stream:
            roots = list(yaml.compose_all(stream, yaml.SafeLoader))
    except FileNotFoundError:
        raise ConfigError(describe_missing(path, ".yaml")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_error(path, error)) from None
    for root in roots:
        document = _construct(root)
        if isinstance(document, dict) and (kind := _kind(document)):
            return ClusterFile(path=path, kind=kind, document=document, lines=_lines(root))
    raise ConfigError(
        f"{path}: is neither a cluster of `ray up` (available_node_types) nor a {' or '.join(KUBERAY_KINDS)} of KubeRay"
    )


def parse_nodes(file: ClusterFile) -> Nodes:
    """Return the nodes that the file promises: its head, and all workers that may be started."""
    if file.kind == "ray up":
        ray_up = cast(RayUpFile, fill_in_ray_defaults(file.document))
        types, head, limit = ray_up["available_node_types"], ray_up["head_node_type"], ray_up["max_workers"]
    else:
        types, head, limit = _kuberay_types(file.ray_cluster), KUBERAY_HEAD, None
    groups = tuple(_node_group(name, node_type, name == head) for name, node_type in types.items())
    return Nodes(groups=groups, max_new_nodes=limit)


def fill_in_ray_defaults(document: YamlMapping) -> YamlMapping:
    """Return a cluster.yaml with Ray's defaults, and without its mounts, which say nothing of nodes."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy({key: value for key, value in document.items() if key != "file_mounts"}))


def _kuberay_types(spec: RayClusterSpec) -> dict[str, NodeType]:
    from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

    workers = [_KUBERAY_DEFAULTS | group for group in spec.get("workerGroupSpecs", [])]
    types = _generate_available_node_types_from_ray_cr_spec({**spec, "workerGroupSpecs": workers})
    if not spec.get("enableInTreeAutoscaling"):
        for group in workers:
            fixed = group.get("replicas", group.get("minReplicas", 0)) * group.get("numOfHosts", 1)
            types[group["groupName"]] |= {"min_workers": fixed, "max_workers": fixed}
    return types


def _node_group(name: str, node_type: NodeType, is_head: bool) -> NodeGroup:
    resources = node_type.get("resources") or {}
    return NodeGroup(
        name=name,
        cpus=float(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        labels=node_type.get("labels") or {},
        running=1 if is_head else 0,
        startable=0 if is_head else node_type["max_workers"],
        always=1 if is_head else node_type["min_workers"],
    )


def _kind(document: YamlMapping) -> str:
    if document.get("kind") in KUBERAY_KINDS and str(document.get("apiVersion", "")).startswith("ray.io/"):
        return str(document["kind"])
    return "ray up" if {"cluster_name", "available_node_types", "provider"} & document.keys() else ""


def _construct(root: yaml.Node | None) -> YamlValue:
    loader = yaml.SafeLoader("")
    try:
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _lines(node: yaml.Node, at: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], int]:
    lines: dict[tuple[str | int, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[*at, key.value] = key.start_mark.line + 1
            lines |= _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[*at, index] = value.start_mark.line + 1
            lines |= _lines(value, (*at, index))
    return lines


def _syntax_error(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    return f"{path}:{line}: is not YAML: {getattr(error, 'problem', None) or error}"
