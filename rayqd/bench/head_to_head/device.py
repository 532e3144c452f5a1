"""What the processes of a benchmark compute on, asked from outside: the one that asks holds none of a GPU's memory."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence

import torch


def device_name() -> str:
    """Return the names of the GPUs that are visible, or what the CPU is."""
    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    names = Counter(query_gpus("name") or [torch.cuda.get_device_name()])
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in names.items())


def used_gpu_bytes() -> int | None:
    """Return the bytes in use on the GPUs that are visible; None where nothing tells."""
    with contextlib.suppress(ValueError):
        if used := query_gpus("memory.used"):
            return sum(int(line) for line in used) * 2**20
    return None


def query_gpus(field: str) -> Sequence[str]:
    """Return what nvidia-smi says of `field`, of each GPU in CUDA_VISIBLE_DEVICES, else of all; none where it fails."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        command += ["-i", visible]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return said.stdout.strip().splitlines()
    return []
