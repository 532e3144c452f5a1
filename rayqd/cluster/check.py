"""Everything that can be found wrong with a cluster file without the cloud it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from rayqd.cluster.files import ClusterFile, as_ray_reads_it, read_cluster_file
from rayqd.cluster.nodes import MARKET, SPOT
from rayqd.cluster.problems import Keys, Problem, schema_problems, unknown
from rayqd.errors import ConfigError

TO_FILL_IN = "REPLACE-ME"


def checked_cluster_file(path: Path) -> ClusterFile:
    """The file, if it is right; else ConfigError names the first wrong key, its line, and what it should be."""
    file = read_cluster_file(path)
    if found := problems(file):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(f"{file.place(*found[0].keys)}: {found[0]}{more}")
    return file


def problems(file: ClusterFile) -> list[Problem]:
    """What must be mended; the file is good if there is nothing."""
    return _ray_up_problems(file.document) if file.kind == "ray up" else _kuberay_problems(file)


def doubts(file: ClusterFile) -> list[Problem]:
    """What is allowed, and yet most likely not meant."""
    blanks = [Problem(keys=keys, text="is still to be filled in") for keys in _blanks(file.document)]
    return blanks + list(_ray_up_doubts(file.document) if file.kind == "ray up" else _kuberay_doubts(file))


def _ray_up_problems(document: dict[str, Any]) -> list[Problem]:
    """By Ray's own schema, and then by what Ray checks besides."""
    from ray.autoscaler._private.providers import _DEFAULT_CONFIGS
    from ray.autoscaler._private.util import validate_config

    provider = document.get("provider")
    known = sorted({*_DEFAULT_CONFIGS, "external"})
    if not isinstance(provider, dict) or "type" not in provider:
        return [Problem(keys=("provider", "type"), text=f"is missing; there are {', '.join(known)}")]
    if provider["type"] not in known:
        hint = unknown(str(provider["type"]), known).removeprefix("unknown key; ")
        return [Problem(keys=("provider", "type"), text=f"Ray knows no provider {provider['type']}; {hint}")]
    if found := schema_problems(document, _ray_schema()):
        return found
    try:
        validate_config(as_ray_reads_it(document))
    except (ValueError, RuntimeError, AssertionError, KeyError) as error:
        return [Problem(keys=(), text=str(error))]
    return []


def _kuberay_problems(file: ClusterFile) -> list[Problem]:
    """By the schema of KubeRay's CRD; its rules in CEL and the operator's own checks are not among it."""
    found = schema_problems(file.document, _kuberay_schema(file.kind))
    spec = file.document.get("spec") if file.kind == "RayJob" else None
    if isinstance(spec, dict) and "runtimeEnvYAML" in spec:
        found += _runtime_env_problems(spec["runtimeEnvYAML"])
    if not found and file.kind == "RayJob" and "rayClusterSpec" not in file.document["spec"]:
        found = [Problem(keys=("spec", "rayClusterSpec"), text="is missing: validate the RayCluster instead")]
    return found


def _runtime_env_problems(text: object) -> list[Problem]:
    from ray.runtime_env import RuntimeEnv

    keys = ("spec", "runtimeEnvYAML")
    try:
        fields = yaml.safe_load(str(text))
    except yaml.YAMLError as error:
        return [Problem(keys=keys, text=f"is not YAML: {getattr(error, 'problem', error)}")]
    if not isinstance(fields, dict):
        return [Problem(keys=keys, text="must be a mapping, as text")]
    known = sorted(RuntimeEnv.known_fields - {key for key in RuntimeEnv.known_fields if key.startswith("_")})
    return [Problem(keys=(*keys, str(key)), text=unknown(str(key), known)) for key in fields if key not in known]


def _blanks(value: object, at: Keys = ()) -> Iterator[Keys]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _blanks(each, (*at, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _blanks(each, (*at, index))
    elif isinstance(value, str) and TO_FILL_IN in value:
        yield at


def _ray_up_doubts(document: dict[str, Any]) -> Iterator[Problem]:
    for name, node_type in document.get("available_node_types", {}).items():
        keys = ("available_node_types", name)
        if not node_type.get("resources"):
            text = "are left to the provider: say CPU and GPU, to have them counted here"
            yield Problem(keys=(*keys, "resources"), text=text)
        labelled = (node_type.get("labels") or {}).get(MARKET) == SPOT
        if _is_spot(node_type.get("node_config") or {}) != labelled:
            text = "says spot, node_config does not" if labelled else "should be spot, as node_config is"
            yield Problem(keys=(*keys, "labels", MARKET), text=f"{text}: the learner goes by the label")


def _is_spot(node_config: dict[str, Any]) -> bool:
    """As AWS and GCP say it."""
    market = node_config.get("InstanceMarketOptions") or {}
    scheduling = node_config.get("scheduling") or {}
    if isinstance(scheduling, list):  # as Ray's examples for GCP write it
        scheduling = {key: value for each in scheduling for key, value in each.items()}
    return (
        market.get("MarketType") == SPOT
        or scheduling.get("preemptible") is True
        or scheduling.get("provisioningModel") == "SPOT"
    )


def _kuberay_doubts(file: ClusterFile) -> Iterator[Problem]:
    at = ("spec", "rayClusterSpec") if file.kind == "RayJob" else ("spec",)
    spec = file.cluster_spec
    if spec.get("autoscalerOptions", {}).get("version") != "v2" and spec.get("enableInTreeAutoscaling"):
        yield Problem(keys=(*at, "autoscalerOptions", "version"), text="should be v2: the first one knows no labels")
    here = version("ray")
    if (theirs := spec.get("rayVersion")) and theirs != here:
        yield Problem(
            keys=(*at, "rayVersion"), text=f"is {theirs}, here is {here}: driver and cluster must have the same"
        )
    groups = [("headGroupSpec", spec["headGroupSpec"]), *enumerate(spec.get("workerGroupSpecs", []))]
    for name, group in groups:
        keys = (*at, name) if isinstance(name, str) else (*at, "workerGroupSpecs", name)
        if "labels" in group.get("rayStartParams", {}):
            yield Problem(keys=(*keys, "rayStartParams", "labels"), text="are not read by the autoscaler: use labels")


@cache
def _ray_schema() -> dict[str, Any]:
    return json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())


@cache
def _kuberay_schema(kind: str) -> dict[str, Any]:
    whole = json.loads(files("rayqd.cluster").joinpath("kuberay.schema.json").read_text())
    return {"$ref": f"#/$defs/{kind}", "$defs": whole["$defs"]}
