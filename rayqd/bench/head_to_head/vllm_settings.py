"""What the processes of peers that use vLLM have in their environment, for the same conditions as in rayqd's own."""

from __future__ import annotations

from collections.abc import MutableMapping

_CPU_KV_CACHE_GIB = 1


def set_vllm_environment(environment: MutableMapping[str, str]) -> None:
    """Set what the user has not: an engine in its own process, and for a CPU its share of memory and cores."""
    environment.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    environment.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_CPU_KV_CACHE_GIB))
    environment.setdefault("VLLM_CPU_INT4_W4A8", "0")
    environment.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # neither top-k nor top-p is asked for
