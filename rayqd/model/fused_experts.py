"""Experts that the model keeps as one parameter [E, N, K], and the matrices that its files have instead.

A file of 4-bit weights holds each expert's matrices by name, as readers unpack and stack them. So only parameters are
quantized that transformers stacks from such matrices; what it does to them is not read from a list but tried, on
numbered rows. Experts in any other form (gpt-oss, Llama 4) stay in 16 bits: no reader loads them in 4.

Shapes: E experts, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.model.source_weights import take_apart
from rayqd.quant import Quantized
from rayqd.quant.routers import find_expert_containers
from rayqd.quant.select import is_ignored

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertMatrix:
    """A matrix of one expert, which the model's files have by name."""

    name: str  # model.layers.0.mlp.experts.3.gate_proj
    rows: slice  # of the parameter as [E·N, K]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedExperts:
    """A parameter [E, N, K] of the model, and what it is stacked from."""

    shape: tuple[int, int, int]
    matrices: tuple[ExpertMatrix, ...]

    def split(self, quantized: Quantized) -> Iterator[tuple[str, Quantized]]:
        """Yield name, codes and scales of each matrix; `quantized` is the whole, as [E·N, K]."""
        zero_points = quantized.zero_points
        for matrix in self.matrices:
            rows = matrix.rows
            zeros = None if zero_points is None else zero_points[rows]
            yield matrix.name, Quantized(quantized.codes[rows], quantized.scales[rows], zeros)

    def split_values(self, values: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield name and values of each matrix; `values` is [E, N, K]."""
        rows = values.flatten(0, 1)
        yield from ((matrix.name, rows[matrix.rows]) for matrix in self.matrices)


def quantizable_experts(model: PreTrainedModel, quant: QuantConfig) -> dict[str, FusedExperts]:
    """Return the parameters of experts to quantize by name, in the model's order; it may be on the meta device.

    An entry of `quant.ignore` may name a parameter, or the module that it lies in. Raises ConfigError where
    `quant.group_size` does not divide their inputs.
    """
    if explain_dense_experts(quant):
        return {}
    found = {
        name: experts
        for name, experts in find_fused_experts(model).items()
        if not is_ignored(name, quant.ignore) and not is_ignored(name.rpartition(".")[0], quant.ignore)
    }
    for name, experts in found.items():
        if experts.shape[2] % quant.group_size:
            raise ConfigError(
                f"quant.group_size={quant.group_size} does not divide the {experts.shape[2]} input features of the "
                f"experts in {name}; use a divisor of them, or add {'.'.join(name.split('.')[-2:])} to quant.ignore"
            )
    return found


def explain_dense_experts(quant: QuantConfig) -> str:
    """Return why no reader loads experts on this grid; empty where transformers and vLLM do."""
    if quant.format != "int4":
        return f"transformers does not load experts in {quant.format}"
    return "transformers does not load experts with zero points" if quant.rule == "asymmetric" else ""


def find_fused_experts(model: PreTrainedModel) -> dict[str, FusedExperts]:
    """Return every parameter [E, N, K] that transformers stacks from matrices [n, K] of the model's files."""
    found: dict[str, FusedExperts] = {}
    for container, _ in find_expert_containers(model):
        for leaf, parameter in model.get_submodule(container).named_parameters(recurse=False):
            if parameter.dim() == 3 and (matrices := _find_matrices(model, f"{container}.{leaf}", parameter)):
                e, n, k = parameter.shape
                found[f"{container}.{leaf}"] = FusedExperts(shape=(e, n, k), matrices=matrices)
    return found


def split_experts(
    model: PreTrainedModel, state: Mapping[str, Tensor], is_wanted: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Return `state`, tensors of `model`, with matrices `{name}.weight` for the parameters that are wanted, by name."""
    split = dict(state)
    for name, experts in find_fused_experts(model).items():
        if name in split and is_wanted(name):
            split |= {f"{matrix}.weight": rows for matrix, rows in experts.split_values(split.pop(name))}
    return split


def _find_matrices(model: PreTrainedModel, name: str, parameter: Tensor) -> tuple[ExpertMatrix, ...]:
    """Return what transformers makes of a parameter with numbered rows; empty where no whole rows come out."""
    numbers = torch.arange(parameter.shape[0] * parameter.shape[1])
    marked = torch.stack([numbers, torch.full_like(numbers, -1)], dim=-1).reshape(*parameter.shape[:2], 2)
    try:
        parts = take_apart(model, {name: marked})
    except (ValueError, RuntimeError, IndexError):  # an operation that needs the parameter's own shape
        return ()
    matrices = [_find_rows(part, tensor) for part, tensor in parts.items()]
    whole = [matrix for matrix in matrices if matrix is not None]
    covers = sum(matrix.rows.stop - matrix.rows.start for matrix in whole) == len(numbers)
    return tuple(sorted(whole, key=lambda matrix: matrix.rows.start)) if covers else ()


def _find_rows(name: str, part: Tensor) -> ExpertMatrix | None:
    """Return which rows a part consists of; None where it is no matrix of consecutive rows."""
    if part.dim() != 2 or part.shape[1] != 2 or not bool((part[:, 1] == -1).all()):
        return None
    if "experts" not in name or not name.endswith(".weight"):  # by which transformers knows what to unpack
        return None
    start, count = int(part[0, 0]), len(part)
    if not torch.equal(part[:, 0], torch.arange(start, start + count)):
        return None
    return ExpertMatrix(name=name.removesuffix(".weight"), rows=slice(start, start + count))
