"""Makes rayqd/cluster/kuberay.schema.json out of KubeRay's RayJob CRD, whole, but for prose and rules in CEL.

curl -LO https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/ray-operator/config/crd/bases/ray.io_rayjobs.yaml
python requirements/kuberay_schema.py v1.7.0 ray.io_rayjobs.yaml > rayqd/cluster/kuberay.schema.json
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

KEPT = {
    "additionalProperties",
    "anyOf",
    "enum",
    "items",
    "maxLength",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
    "x-kubernetes-int-or-string",
}
WORTH_SHARING = 120  # characters


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """As JSON schema, which unlike Kubernetes must be told that unknown keys are errors."""
    kept = {key: value for key, value in schema.items() if key in KEPT}
    if "properties" in kept:
        kept["properties"] = {name: plain(each) for name, each in kept["properties"].items()}
        kept.setdefault("additionalProperties", False)
        # Kubernetes fills in defaults before it validates.
        filled = {name for name, each in schema["properties"].items() if "default" in each}
        kept["required"] = [name for name in schema.get("required", []) if name not in filled]
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = plain(kept[key])
    if schema.get("nullable"):
        kept["type"] = [kept["type"], "null"]
    return kept


def text(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True, separators=(",", ":"))


def count(schema: Any, counts: Counter[str]) -> None:
    if isinstance(schema, dict):
        counts[text(schema)] += 1
        for each in schema.values():
            count(each, counts)


def shared(schema: Any, counts: Counter[str], definitions: dict[str, Any]) -> Any:
    """What stands in several places stands once, and is referred to."""
    if not isinstance(schema, dict):
        return schema
    body = {key: shared(each, counts, definitions) for key, each in schema.items()}
    if counts[text(schema)] < 2 or len(text(schema)) < WORTH_SHARING or "type" not in schema:
        return body
    name = hashlib.sha1(text(schema).encode()).hexdigest()[:6]
    definitions[name] = body
    return {"$ref": f"#/$defs/{name}"}


def main(version: str, file: Path) -> None:
    crd = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
    served = next(each for each in crd["spec"]["versions"] if each["name"] == "v1")
    job = plain(served["schema"]["openAPIV3Schema"])
    job["properties"] = {
        "apiVersion": {"type": "string", "enum": ["ray.io/v1"]},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": job["properties"]["spec"],
    }
    job["required"] = ["apiVersion", "kind", "metadata", "spec"]
    cluster = job | {
        "properties": job["properties"] | {"spec": job["properties"]["spec"]["properties"]["rayClusterSpec"]}
    }
    counts: Counter[str] = Counter()
    definitions: dict[str, Any] = {}
    for each in (job, cluster):
        count(each, counts)
    kinds = {"RayJob": shared(job, counts, definitions), "RayCluster": shared(cluster, counts, definitions)}
    about = f"KubeRay {version}, CRD rayjobs.ray.io, v1; Apache-2.0; made by requirements/kuberay_schema.py"
    print(json.dumps({"$comment": about, "$defs": definitions | kinds}, separators=(",", ":")))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
