"""Experts in files of GGUF and MLX: a matrix of all experts of a layer is one tensor, where other files have E of them.

Shapes: E experts, N outputs, K inputs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from rayqd.model.fused_experts import FusedExperts

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)")
# What mlx-lm calls the experts of every model that has them as `mlp.experts`. It stacks others itself, by their names.
_MLX = re.compile(r"(.*\.mlp)\.experts\.(gate_proj|up_proj|down_proj)")
_MLX_STACKED = re.compile(r"(.*\.mlp)\.switch_mlp\.(\w+)")


def stack_experts(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the layers of each tensor by its name: of `mlp.experts.up_proj` those of all experts, in their order.

    A layer of any other name is a tensor of its own.
    """
    found: dict[str, dict[int, str]] = {}
    for layer in layers:
        name, expert = locate_expert(layer) or (layer, 0)
        found.setdefault(name, {})[expert] = layer
    return {name: tuple(layers[expert] for expert in sorted(layers)) for name, layers in found.items()}


def locate_expert(layer: str) -> tuple[str, int] | None:
    """Split `mlp.experts.3.up_proj` into `mlp.experts.up_proj` and 3; None where it is no expert's."""
    match = _EXPERT.fullmatch(layer)
    return (f"{match[1]}.{match[3]}", int(match[2])) if match else None


def group_for_mlx(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the layers of each tensor by the name that MLX's files have; where that is one layer, its own name."""
    groups: dict[str, tuple[str, ...]] = {}
    for name, parts in stack_experts(layers).items():
        if found := _MLX.fullmatch(name):
            groups[f"{found[1]}.switch_mlp.{found[2]}"] = parts
        else:
            groups |= {part: (part,) for part in parts}
    return groups


def name_mlx_experts(layer: str, num_experts: int) -> list[str] | None:
    """Return what the matrices of a tensor of MLX's are called one by one; None where `layer` is no such tensor."""
    found = _MLX_STACKED.fullmatch(layer)
    return [f"{found[1]}.experts.{i}.{found[2]}" for i in range(num_experts)] if found else None


def is_router(name: str) -> bool:
    """Return whether the GGUF tensor `name` is a router or the gate of a shared expert; llama.cpp has those in F32."""
    return ".ffn_gate_inp" in name


def read_experts(experts: FusedExperts, read: Callable[[str], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return a parameter [E, N, K] of the model; `read` returns all experts' values of a matrix, [E, n, K], by name."""
    e, n, k = experts.shape
    rows = np.empty((e * n, k), dtype=np.float32)
    read_so_far: dict[str, NDArray[np.float32]] = {}
    for matrix in experts.matrices:
        found = locate_expert(matrix.name)
        assert found is not None
        name, expert = found
        if name not in read_so_far:
            read_so_far[name] = read(name)
        rows[matrix.rows] = read_so_far[name][expert]
    return rows.reshape(e, n, k)
