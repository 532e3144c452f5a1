"""Checks of the machine: cores, memory, disks. Inside a container its limits count, not the host's."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

from rayqd.doctor.finding import Finding

GIB = 2**30
QUICKSTART_MEMORY_GIB = 12
MIN_DISK_GIB = 5
MIN_SHARED_MEMORY_GIB = 2
RAY_DISK_SHARE = 0.95  # beyond it Ray refuses to spill objects (RAY_local_fs_capacity_threshold)
CGROUP = Path("/sys/fs/cgroup")


def check_cores() -> Finding:
    """Count the cores that this process may use; fewer than two are a warning."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CGROUP)
    count = min(available, quota) if quota else available
    limited = f" (the container's limit; the machine has {available})" if count < available else ""
    if count < 2:
        fix = "give it two or more: learner and rollouts take turns on one"
        return Finding(subject="cores", mark="warn", text=f"{count:g}{limited}", fix=fix)
    return Finding(subject="cores", mark="ok", text=f"{count:g}{limited}")


def cpu_quota(cgroup: Path) -> float | None:
    """Return the cores that a container may use, by cgroup v2's cpu.max ("200000 100000") or v1; None if unlimited."""
    if (line := _read(cgroup / "cpu.max")) and line.split()[0] != "max":
        quota, period = line.split()
        return int(quota) / int(period)
    quota, period = _read(cgroup / "cpu/cpu.cfs_quota_us"), _read(cgroup / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota and period and int(quota) > 0 else None


def check_bfloat16() -> Finding:
    """Tell whether the CPU multiplies bfloat16 itself: without, everything works and is slower."""
    flags = set((_read(Path("/proc/cpuinfo")) or "").split())
    present = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]
    text = (
        f"in hardware ({', '.join(present)})"
        if present
        else "not in this CPU's hardware: slower on the CPU, same results"
    )
    return Finding(subject="bfloat16", mark="ok", text=text)


def check_memory() -> Finding:
    """Compare the memory with what the quickstart needs, in GiB."""
    machine = psutil.virtual_memory()
    limit = memory_limit(CGROUP)
    total = min(machine.total, limit) if limit else machine.total
    where = "the container's limit" if total < machine.total else f"{machine.available / GIB:.1f} free"
    text = f"{total / GIB:.1f} GiB ({where})"
    if min(total, machine.available) < QUICKSTART_MEMORY_GIB * GIB:
        fix = "close what else runs, or raise the container's limit (docker run --memory)"
        text += f"; the quickstart needs {QUICKSTART_MEMORY_GIB}"
        return Finding(subject="memory", mark="warn", text=text, fix=fix)
    return Finding(subject="memory", mark="ok", text=text)


def memory_limit(cgroup: Path) -> int | None:
    """Return the bytes that a container may use, from cgroup v2's memory.max or its v1 twin; None if unlimited."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        line = _read(cgroup / name)
        if line and line != "max":
            return int(line)
    return None


def check_disk(subject: str, folder: Path) -> Finding:
    """Check that `folder`, or where it would be made, is writable and has MIN_DISK_GIB free."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        fix = "name a folder you may write to: --runs-dir DIR"
        return Finding(subject=subject, mark="fail", text=f"{existing} is not writable", fix=fix)
    free = shutil.disk_usage(existing).free
    text = f"{free / GIB:.1f} GiB free at {existing}"
    if free < MIN_DISK_GIB * GIB:
        fix = "free some, or name another disk: --runs-dir DIR"
        return Finding(subject=subject, mark="warn", text=f"{text}; the quickstart wants {MIN_DISK_GIB}", fix=fix)
    return Finding(subject=subject, mark="ok", text=text)


def check_temporary_disk() -> Finding:
    """Check the disk on which Ray keeps its logs and spills its objects."""
    folder = tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / GIB:.1f} GiB free at {folder}"
    if usage.free < MIN_DISK_GIB * GIB or usage.free < (1 - RAY_DISK_SHARE) * usage.total:
        fix = (
            f"free some, or set RAY_TMPDIR: Ray spills to {folder} only while it is less than {RAY_DISK_SHARE:.0%} full"
        )
        return Finding(subject="temporary disk", mark="warn", text=text, fix=fix)
    return Finding(subject="temporary disk", mark="ok", text=text)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Check the size of the file system that holds Ray's object store."""
    if not folder.is_dir():
        return Finding(subject="shared memory", mark="ok", text=f"no {folder} on this system; Ray does without")
    size = shutil.disk_usage(folder).total
    text = f"{size / GIB:.1f} GiB at {folder}"
    if size < MIN_SHARED_MEMORY_GIB * GIB:
        text += "; Ray falls back to the temporary disk, which is slow"
        return Finding(subject="shared memory", mark="warn", text=text, fix="docker run --shm-size=4g")
    return Finding(subject="shared memory", mark="ok", text=text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
