"""What of its GPU an engine takes, when it shares it with the learner and a teacher or has it to itself."""

from __future__ import annotations

from pathlib import Path

import torch

from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.model.gpu_memory import (
    USABLE,
    GpuShare,
    ModelSize,
    advise,
    describe_shortage,
    engine_bytes,
    learner_bytes,
    measure_size,
    plan_engine,
    teacher_bytes,
)
from rayqd.model.load import load_meta_model, torch_dtype
from rayqd.model.source import teacher_directories
from rayqd.rollout.kv_cache import kv_bytes_per_token, kv_cache_bytes
from rayqd.rollout.tuning import most_sequences


def plan_gpu_share(
    directory: Path, config: Config, gpu_share: float, context_length: int, *, is_dense: bool
) -> GpuShare | None:
    """Return the engine's share of this process's GPU, for sequences of `context_length` tokens.

    None on a CPU, where `rollout.gpu_memory_utilization` is set, and for a model whose keys and values cannot be told
    from its config: vLLM then measures. Raises PlacementError where the GPU is too small for all that share it.
    """
    total = total_gpu_bytes()
    if total is None or config.rollout.gpu_memory_utilization is not None:
        return None
    return divide_gpu(total, directory, config, gpu_share, context_length, is_dense=is_dense)


def total_gpu_bytes() -> int | None:
    """Return the memory of this process's first GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)  # pyright: ignore


def divide_gpu(
    total_bytes: int, directory: Path, config: Config, gpu_share: float, context_length: int, *, is_dense: bool
) -> GpuShare | None:
    """Do the same for a GPU of `total_bytes`, from the model's config alone: nothing is loaded."""
    model = load_meta_model(directory)
    value = torch_dtype(config.model.dtype).itemsize
    per_token = kv_bytes_per_token(model.config, value, config.rollout.tensor_parallel)
    if per_token is None:
        return None
    num_sequences = most_sequences(config)
    size = measure_size(model, config)
    others = _others(size, config, gpu_share)
    return plan_engine(
        total_bytes,
        others,
        engine_bytes(size, config, config.rollout.max_concurrent, is_dense=is_dense),
        kv_cache_bytes(per_token, context_length, num_sequences),
        kv_cache_bytes(per_token, context_length, 1),
        advise(config, [*others, "rollout"]),
    )


def check_without_engine(total_bytes: int, directory: Path, config: Config, gpu_share: float) -> None:
    """Raise PlacementError where learner and teacher, of which each has `gpu_share` of a GPU, are too much for it."""
    needs = _needs(measure_size(load_meta_model(directory), config), config)
    alone = [] if config.teacher.gpus_per_worker == 1 else [{name: needs.pop(name)} for name in _names(config)]
    for together in (_largest(needs, round(1 / gpu_share)), *alone):
        if sum(together.values()) > USABLE * total_bytes:
            raise PlacementError(describe_shortage(total_bytes, together, advise(config, list(together))))


def _others(size: ModelSize, config: Config, gpu_share: float) -> dict[str, int]:
    """Return the needs of the largest workers that can be beside an engine which has `gpu_share` of its GPU."""
    needs = _needs(size, config)
    if config.teacher.gpus_per_worker > 1:
        for name in _names(config):
            del needs[name]  # whose GPUs are its own
    return _largest(needs, max(0, round(1 / gpu_share) - 1))


def _needs(size: ModelSize, config: Config) -> dict[str, int]:
    """Return the bytes that the learner and each teacher need of a GPU."""
    sizes = [
        size if teacher.is_student else measure_size(load_meta_model(directory), config)
        for teacher, directory in zip(config.teachers, teacher_directories(config), strict=True)
    ]
    teachers = {name: teacher_bytes(each, config) for name, each in zip(_names(config), sizes, strict=True)}
    return {"learner": learner_bytes(size, config, sizes), **teachers}


def _names(config: Config) -> list[str]:
    """Return what a line calls each teacher: "teacher", or of several "teacher NAME"."""
    return [f"teacher {each.name}" if config.teacher.route else "teacher" for each in config.teachers]


def _largest(needs: dict[str, int], count: int) -> dict[str, int]:
    """Return the `count` largest of `needs`, the largest first."""
    return dict(sorted(needs.items(), key=lambda need: -need[1])[:count])
