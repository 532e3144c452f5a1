"""How long vLLM takes for which part of its start: its own steps, wrapped while the engine is built.

vLLM logs some of these times and returns none. A step that a version does not have is left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import ModuleType
from typing import Any
from unittest.mock import patch

from rayqd.spans import span

Steps = dict[str, str]  # names of functions or methods, and of their spans

_CONFIGURATION: Steps = {"create_engine_config": "vLLM: configuration"}
_WORKER: Steps = {
    "init_device": "vLLM: device",
    "load_model": "vLLM: load model",
    "determine_available_memory": "vLLM: memory",
    "initialize_from_config": "vLLM: KV cache",
    "compile_or_warm_up_model": "vLLM: compile or warm up",
}
_RUNNER: Steps = {
    "profile_run": "vLLM: profile run",
    "profile_cudagraph_memory": "vLLM: profile CUDA graphs",
    "capture_model": "vLLM: capture CUDA graphs",
    "warming_up_model": "vLLM: warm up CPU",
}
_MODULE_OF_THE_WORKER: Steps = {
    "kernel_warmup": "vLLM: kernels' warm-up",
    "warmup_kernels": "vLLM: kernels' first calls",
}
_COMPILER: Steps = {"__call__": "vLLM: torch.compile"}

Function = Callable[..., Any]


@contextmanager
def record_engine_spans() -> Generator[None]:
    """Record vLLM's steps as spans for the length of a `with` in which an engine is built in this process."""
    worker = importlib.import_module("vllm.v1.worker.gpu_worker")
    with ExitStack() as patches:
        _wrap_all(patches, importlib.import_module("vllm.engine.arg_utils").EngineArgs, _CONFIGURATION)
        _wrap_all(patches, importlib.import_module("vllm.compilation.backends").VllmBackend, _COMPILER)
        _wrap_all(patches, worker, _MODULE_OF_THE_WORKER)
        for cls in _worker_classes(worker):
            _wrap_all(patches, cls, _WORKER)
            if "init_device" in vars(cls):
                patches.enter_context(patch.object(cls, "init_device", _then_wrap_runner(cls.init_device, patches)))
        yield


def _worker_classes(module: ModuleType) -> list[type[Any]]:
    """Return the GPU's worker and, where vLLM computes on a CPU, the class that is derived from it."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return [module.Worker]
    return [module.Worker, importlib.import_module("vllm.v1.worker.cpu_worker").CPUWorker]


def _then_wrap_runner(init_device: Function, patches: ExitStack) -> Function:
    """Return `init_device`, after which the worker has a model runner, with that runner's steps wrapped as well."""

    @wraps(init_device)
    def wrapped(worker: Any) -> None:
        init_device(worker)
        _wrap_all(patches, worker.model_runner, _RUNNER)

    return wrapped


def _wrap_all(patches: ExitStack, owner: Any, steps: Steps) -> None:
    for name, title in steps.items():
        own = getattr(owner, name, None) if not isinstance(owner, type) else vars(owner).get(name)
        if own is not None:
            patches.enter_context(patch.object(owner, name, _timed(own, title)))


def _timed(function: Function, title: str) -> Function:
    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with span(title):
            return function(*args, **kwargs)

    return timed
