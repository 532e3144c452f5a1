"""Everything that can be found wrong with a cluster file without the cloud it is for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import yaml

from rayqd.cluster.documents import HeadGroupSpec, NodeType, RayUpFile, YamlMapping, YamlValue
from rayqd.cluster.files import ClusterFile, fill_in_ray_defaults, read_cluster_file
from rayqd.cluster.nodes import MARKET, SPOT
from rayqd.cluster.problems import Keys, Problem, check_schema, describe_unknown_key
from rayqd.errors import ConfigError

TO_FILL_IN = "REPLACE-ME"


def load_valid_cluster_file(path: Path) -> ClusterFile:
    """Read a file and check it; ConfigError names the first wrong key, its line, and what it should be."""
    file = read_cluster_file(path)
    if errors := find_errors(file):
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{file.location(*errors[0].keys)}: {errors[0]}{more}")
    return file


def find_errors(file: ClusterFile) -> list[Problem]:
    """Return what must be mended; the file is good if there is nothing."""
    return _ray_up_errors(file.document) if file.kind == "ray up" else _kuberay_errors(file)


def find_warnings(file: ClusterFile) -> list[Problem]:
    """Return what is allowed, and yet most likely not meant."""
    blanks = [Problem(keys=keys, text="is still to be filled in") for keys in _blanks(file.document)]
    return blanks + list(_ray_up_warnings(file.ray_up) if file.kind == "ray up" else _kuberay_warnings(file))


def _ray_up_errors(document: YamlMapping) -> list[Problem]:
    """Check by Ray's own schema, and then by what Ray checks besides."""
    from ray.autoscaler._private.util import validate_config

    if errors := _provider_errors(document.get("provider")) or check_schema(document, _ray_schema()):
        return errors
    try:
        validate_config(fill_in_ray_defaults(document))
    except (ValueError, RuntimeError, AssertionError, KeyError) as error:
        return [Problem(keys=(), text=str(error))]
    return []


def _provider_errors(provider: YamlValue) -> list[Problem]:
    from ray.autoscaler._private.providers import _DEFAULT_CONFIGS

    keys = ("provider", "type")
    known = sorted({*_DEFAULT_CONFIGS, "external"})
    if not isinstance(provider, dict) or "type" not in provider:
        return [Problem(keys=keys, text=f"is missing; there are {', '.join(known)}")]
    if provider["type"] in known:
        return []
    hint = describe_unknown_key(str(provider["type"]), known).removeprefix("unknown key; ")
    return [Problem(keys=keys, text=f"Ray knows no provider {provider['type']}; {hint}")]


def _kuberay_errors(file: ClusterFile) -> list[Problem]:
    """Check by the schema of KubeRay's CRD; its rules in CEL and the operator's own checks are not among it."""
    errors = check_schema(file.document, _kuberay_schema(file.kind))
    spec = file.document.get("spec")
    if file.kind != "RayJob" or not isinstance(spec, dict):
        return errors
    if "runtimeEnvYAML" in spec:
        errors += _runtime_env_errors(spec["runtimeEnvYAML"])
    if not errors and "rayClusterSpec" not in spec:
        errors = [Problem(keys=("spec", "rayClusterSpec"), text="is missing: validate the RayCluster instead")]
    return errors


def _runtime_env_errors(text: YamlValue) -> list[Problem]:
    from ray.runtime_env import RuntimeEnv

    keys = ("spec", "runtimeEnvYAML")
    try:
        fields = yaml.safe_load(str(text))
    except yaml.YAMLError as error:
        return [Problem(keys=keys, text=f"is not YAML: {getattr(error, 'problem', error)}")]
    if not isinstance(fields, dict):
        return [Problem(keys=keys, text="must be a mapping, as text")]
    known = sorted(RuntimeEnv.known_fields - {key for key in RuntimeEnv.known_fields if key.startswith("_")})
    unknown = [str(key) for key in fields if key not in known]
    return [Problem(keys=(*keys, key), text=describe_unknown_key(key, known)) for key in unknown]


def _blanks(value: YamlValue, at: Keys = ()) -> Iterator[Keys]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _blanks(member, (*at, key))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _blanks(member, (*at, index))
    elif isinstance(value, str) and TO_FILL_IN in value:
        yield at


def _ray_up_warnings(document: RayUpFile) -> Iterator[Problem]:
    for name, node_type in document.get("available_node_types", {}).items():
        keys = ("available_node_types", name)
        if not node_type.get("resources"):
            text = "are left to the provider: say CPU and GPU, to have them counted here"
            yield Problem(keys=(*keys, "resources"), text=text)
        labelled = (node_type.get("labels") or {}).get(MARKET) == SPOT
        if _is_spot(node_type) != labelled:
            text = "says spot, node_config does not" if labelled else "should be spot, as node_config is"
            yield Problem(keys=(*keys, "labels", MARKET), text=f"{text}: the learner goes by the label")


def _is_spot(node_type: NodeType) -> bool:
    """Return whether a machine is asked for as spot, in the words of AWS or GCP."""
    node_config = node_type.get("node_config") or {}
    market, scheduling = (_members(node_config.get(key)) for key in ("InstanceMarketOptions", "scheduling"))
    return (
        market.get("MarketType") == SPOT
        or scheduling.get("preemptible") is True
        or scheduling.get("provisioningModel") == "SPOT"
    )


def _members(value: YamlValue) -> YamlMapping:
    """Return a mapping's keys and values, or those of a list of mappings, as Ray's examples for GCP write one."""
    mappings = value if isinstance(value, list) else [value]
    return {key: member for mapping in mappings if isinstance(mapping, dict) for key, member in mapping.items()}


def _kuberay_warnings(file: ClusterFile) -> Iterator[Problem]:
    at = ("spec", "rayClusterSpec") if file.kind == "RayJob" else ("spec",)
    spec = file.ray_cluster
    if spec.get("autoscalerOptions", {}).get("version") != "v2" and spec.get("enableInTreeAutoscaling"):
        yield Problem(keys=(*at, "autoscalerOptions", "version"), text="should be v2: the first one knows no labels")
    here = version("ray")
    if (theirs := spec.get("rayVersion")) and theirs != here:
        yield Problem(
            keys=(*at, "rayVersion"), text=f"is {theirs}, here is {here}: driver and cluster must have the same"
        )
    groups: list[tuple[Keys, HeadGroupSpec]] = [(("headGroupSpec",), spec["headGroupSpec"])]
    groups += [(("workerGroupSpecs", index), group) for index, group in enumerate(spec.get("workerGroupSpecs", []))]
    for keys, group in groups:
        if "labels" in group.get("rayStartParams", {}):
            text = "are not read by the autoscaler: use labels"
            yield Problem(keys=(*at, *keys, "rayStartParams", "labels"), text=text)


@cache
def _ray_schema() -> YamlMapping:
    return json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())


@cache
def _kuberay_schema(kind: str) -> YamlMapping:
    schema = json.loads(files("rayqd.cluster").joinpath("kuberay.schema.json").read_text())
    return {"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]}
