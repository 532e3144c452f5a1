"""Cluster files: the cluster.yaml of `ray up`, and KubeRay's RayJob and RayCluster.

What nodes they promise is read by Ray's own code, the one that its autoscalers run.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rayqd.cluster.nodes import NodeGroup, Nodes
from rayqd.config.files import missing
from rayqd.errors import ConfigError

KUBERAY_KINDS = ("RayJob", "RayCluster")
_KUBERAY_DEFAULTS = {"minReplicas": 0, "maxReplicas": 2**31 - 1, "rayStartParams": {}}  # of its CRD


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    path: Path
    kind: str  # "ray up", or what KubeRay calls it
    document: dict[str, Any]
    lines: Mapping[tuple[str | int, ...], int]  # of every key, counted from 1

    def place(self, *keys: str | int) -> str:
        """`cluster.yaml:12`, the line of the key, or of the innermost around it that is there."""
        found = next((self.lines[keys[:end]] for end in range(len(keys), -1, -1) if keys[:end] in self.lines), 1)
        return f"{self.path}:{found}"

    @property
    def cluster_spec(self) -> dict[str, Any]:
        """KubeRay's RayClusterSpec."""
        spec = self.document["spec"]
        return spec["rayClusterSpec"] if self.kind == "RayJob" else spec


def read_cluster_file(path: Path) -> ClusterFile:
    """The file, not yet checked; of several documents the one that is a cluster. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as stream:
            roots = list(yaml.compose_all(stream, yaml.SafeLoader))
    except FileNotFoundError:
        raise ConfigError(missing(path, ".yaml")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_error(path, error)) from None
    for root in roots:
        document = _plain(root)
        if isinstance(document, dict) and (kind := _kind(document)):
            return ClusterFile(path=path, kind=kind, document=document, lines=_lines(root))
    raise ConfigError(
        f"{path}: is neither a cluster of `ray up` (available_node_types) nor a {' or '.join(KUBERAY_KINDS)} of KubeRay"
    )


def nodes_of(file: ClusterFile) -> Nodes:
    """The nodes that the file promises: its head, and all workers that may be started."""
    types, head, limit = _ray_up_types(file.document) if file.kind == "ray up" else _kuberay_types(file.cluster_spec)
    return Nodes(groups=tuple(_group(name, each, name == head) for name, each in types.items()), max_new_nodes=limit)


def as_ray_reads_it(document: dict[str, Any]) -> dict[str, Any]:
    """A cluster.yaml with Ray's defaults, and without its mounts, which say nothing of nodes."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(copy.deepcopy({key: value for key, value in document.items() if key != "file_mounts"}))


def _ray_up_types(document: dict[str, Any]) -> tuple[dict[str, Any], str, int | None]:
    prepared = as_ray_reads_it(document)
    return prepared["available_node_types"], prepared["head_node_type"], prepared["max_workers"]


def _kuberay_types(spec: dict[str, Any]) -> tuple[dict[str, Any], str, None]:
    from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec

    workers = [_KUBERAY_DEFAULTS | group for group in spec.get("workerGroupSpecs", [])]
    spec = spec | {"workerGroupSpecs": workers}
    types = _generate_available_node_types_from_ray_cr_spec(spec)
    if not spec.get("enableInTreeAutoscaling"):
        for group in workers:
            fixed = group.get("replicas", group["minReplicas"]) * group.get("numOfHosts", 1)
            types[group["groupName"]] |= {"min_workers": fixed, "max_workers": fixed}
    return types, "headgroup", None


def _group(name: str, node_type: dict[str, Any], is_head: bool) -> NodeGroup:
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


def _kind(document: dict[str, Any]) -> str:
    if document.get("kind") in KUBERAY_KINDS and str(document.get("apiVersion", "")).startswith("ray.io/"):
        return str(document["kind"])
    return "ray up" if {"cluster_name", "available_node_types", "provider"} & document.keys() else ""


def _plain(root: yaml.Node | None) -> object:
    loader = yaml.SafeLoader("")
    try:
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _lines(node: yaml.Node, at: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], int]:
    found: dict[tuple[str | int, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[*at, key.value] = key.start_mark.line + 1
            found |= _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found[*at, index] = value.start_mark.line + 1
            found |= _lines(value, (*at, index))
    return found


def _syntax_error(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    return f"{path}:{line}: is not YAML: {getattr(error, 'problem', None) or error}"
