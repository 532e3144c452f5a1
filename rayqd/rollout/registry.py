"""Which architectures vLLM has a class of its own for."""

from __future__ import annotations

from importlib.util import find_spec


def engine_architectures() -> frozenset[str] | None:
    """Return the class names that vLLM's registry has; None without vLLM."""
    if find_spec("vllm") is None:
        return None
    from vllm import ModelRegistry

    return frozenset(ModelRegistry.get_supported_archs())
