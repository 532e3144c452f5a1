"""What this machine multiplies fastest, and what it cannot multiply at all.

Nothing here takes memory of a GPU, nor, where no AMD GPU may be the answer, the seconds that importing torch takes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import runpy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA's Ampere is the first that has it
_BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16", "svebf16")
_WITHOUT_BFLOAT16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")  # of oneDNN's names
_BELOW_AVX512 = ("default", "avx2")  # of ATEN_CPU_CAPABILITY, by which torch uses less than the CPU has
_MACHINES = ("x86_64", "AMD64", "aarch64", "arm64", "ppc64le", "s390x", "riscv64")  # that vLLM has CPU code for
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NAME_BYTES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    capability: tuple[int, int]  # NVIDIA's compute capability

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """NVIDIA's driver, and the GPUs that it shows."""

    cuda: tuple[int, int]  # the newest CUDA that it can run
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """A torch."""

    version: str
    cuda: str | None  # that it is built for; None without
    hip: str | None  # the same of AMD's


def choose_dtype() -> tuple[str, str]:
    """Return the dtype that this machine computes fastest, of those that training is safe in, and why.

    float16 never: its gradients underflow without a loss scale.
    """
    gpus = find_gpus()
    if old := [gpu for gpu in gpus if gpu.capability < BFLOAT16_CAPABILITY]:
        return "float32", f"{old[0]} has no bfloat16"
    if gpus:
        return "bfloat16", f"{gpus[0].name} has it"
    if _finds_amd_gpu():
        return "bfloat16", "the GPU has it"
    if names := native_bfloat16():
        return "bfloat16", f"this CPU has it ({', '.join(names)})"
    return "float32", "this CPU computes bfloat16 in software, which is slower"


def native_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the CPU's instructions that multiply bfloat16, by Linux's names, as far as torch may use them."""
    if platform.machine() in ("x86_64", "AMD64") and os.environ.get("ATEN_CPU_CAPABILITY") in _BELOW_AVX512:
        return ()
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if isa.upper() in _WITHOUT_BFLOAT16:
        return ()
    flags = _cpu_flags(cpuinfo)
    return tuple(flag for flag in _BFLOAT16_FLAGS if flag in flags)


def find_gpus() -> tuple[Gpu, ...]:
    """Return NVIDIA's GPUs that torch can use; none where torch is a build without CUDA."""
    driver = _ask_driver() if torch_build().cuda else None
    return driver.gpus if driver else ()


def explain_useless_machine() -> str:
    """Return why torch cannot compute here as it should, and the way out; empty where it can."""
    if reason := explain_old_driver(_ask_driver(), torch_build().cuda):
        return reason
    return "" if find_gpus() or _finds_amd_gpu() else explain_unknown_cpu(platform.machine(), _cpu_flags())


def explain_old_driver(driver: Driver | None, cuda: str | None) -> str:
    """Return why torch, built for version `cuda`, sees none of `driver`'s GPUs; empty where it sees them."""
    if driver is None or not driver.gpus or cuda is None or driver.cuda[0] >= int(cuda.partition(".")[0]):
        return ""
    newest = f"{driver.cuda[0]}.{driver.cuda[1]}"
    return (
        f"NVIDIA's driver runs CUDA up to {newest}, and torch {torch_build().version} is built for CUDA {cuda}, so "
        f"that it sees no GPU: update the driver, or install a torch for CUDA {driver.cuda[0]}"
    )


def explain_unknown_cpu(machine: str, flags: frozenset[str]) -> str:
    """Return why torch's and vLLM's CPU code cannot run on a CPU with Linux's `flags`; empty where it can."""
    if machine not in _MACHINES:
        return f"neither torch nor vLLM has code for a CPU of kind {machine}: use a GPU, or an x86-64"
    if machine in ("x86_64", "AMD64") and flags and "avx2" not in flags:
        return "this CPU has no AVX2, without which vLLM does not start: use a newer one, or a GPU"
    return ""


def explain_missing_bfloat16(dtype: str) -> str:
    """Return why a GPU of this process cannot compute in `dtype`, and the way out; empty where all can."""
    if dtype != "bfloat16":
        return ""
    old = next((gpu for gpu in find_gpus() if gpu.capability < BFLOAT16_CAPABILITY), None)
    return f"{old} has no bfloat16: use --model.dtype float32, or a GPU of capability 8.0 or more" if old else ""


@cache
def torch_build() -> Build:
    """Return which torch is installed, as its file version.py says. Raises ImportError without one."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError("torch is not installed")
    said: dict[str, Any] = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return Build(version=said["__version__"], cuda=said.get("cuda"), hip=said.get("hip"))


def _finds_amd_gpu() -> bool:
    if not torch_build().hip:
        return False
    import torch

    return torch.cuda.is_available()


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    try:
        return frozenset(cpuinfo.read_text().split())
    except OSError:
        return frozenset()


def _ask_driver() -> Driver | None:
    """Ask NVIDIA's driver itself: torch would make a context, some hundred MB of the first GPU, in this process."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return None
    gpus = tuple(_describe_gpu(cuda, index) for index in range(count.value))
    return Driver(cuda=(version.value // 1000, version.value % 1000 // 10), gpus=gpus)


def _describe_gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, _NAME_BYTES, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(name=name.value.decode(errors="replace"), capability=(major.value, minor.value))
