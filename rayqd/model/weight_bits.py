"""How many bits each weight of a quantized model takes, by what the weight is for: of the whole model, head included.

Counted on the tensors that are stored: of a quantized layer those that a few rows of its width are packed to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from rayqd.config import Config
from rayqd.model.fused_experts import quantizable_experts
from rayqd.model.load import torch_dtype
from rayqd.model.rounded_head import find_head
from rayqd.quant import make_grid, pack, quantizable_layers
from rayqd.quant.head import BITS
from rayqd.quant.routers import find_expert_containers, find_routers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("linear", "experts", "router", "other", "embedding", "head")  # "other": norms, biases, convolutions
LARGE_SHARE = 0.1  # of the body in 16 bits, from which on a line says so
_ROWS = 16  # whole words also where codes of several rows share one


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBits:
    """The weights of one kind."""

    kind: str  # one of `KINDS`
    num_weights: int
    num_bits: int
    num_dense: int  # of the weights, those that are not quantized

    @property
    def bits_per_weight(self) -> float:
        """Return the mean, scales included."""
        return self.num_bits / self.num_weights


def count_weight_bits(model: PreTrainedModel, config: Config) -> tuple[WeightBits, ...]:
    """Count the weights of `model` before its layers are replaced, a tied head once; it may be on the meta device."""
    packed = _PackedBits(config)
    layers: Mapping[str, nn.Linear] = quantizable_layers(model, config.quant)
    matrices = {f"{name}.weight": [tuple(layer.weight.shape)] for name, layer in layers.items()}
    for name, experts in quantizable_experts(model, config.quant).items():
        rows = [matrix.rows for matrix in experts.matrices]
        matrices[name] = [(each.stop - each.start, experts.shape[2]) for each in rows]
    head = _find_rounded_head(model, config)
    dense_bits = 8 * torch_dtype(config.model.dtype).itemsize
    counted: dict[str, list[int]] = {kind: [0, 0, 0] for kind in KINDS}
    for kind, name, parameter in _by_kind(model):
        count = parameter.numel()
        shapes = matrices.get(name)
        if parameter is head:
            bits, num_dense = _head_bits(parameter, config), 0
        else:
            bits = count * dense_bits if shapes is None else sum(packed.count(n, k) for n, k in shapes)
            num_dense = count * (shapes is None)
        counted[kind] = [a + b for a, b in zip(counted[kind], (count, bits, num_dense), strict=True)]
    return tuple(
        WeightBits(kind=kind, num_weights=weights, num_bits=bits, num_dense=dense)
        for kind, (weights, bits, dense) in counted.items()
        if weights
    )


def mean_bits(counted: Sequence[WeightBits]) -> float:
    """Return the bits of a weight over all kinds."""
    return sum(each.num_bits for each in counted) / sum(each.num_weights for each in counted)


def describe_bits(counted: Sequence[WeightBits]) -> str:
    """Format `6.74 bits a weight over the whole model: linear 4.25, embedding 16`."""
    parts = ", ".join(f"{each.kind} {each.bits_per_weight:.4g}" for each in counted)
    return f"{mean_bits(counted):.4g} bits a weight over the whole model: {parts}"


def describe_dense_body(counted: Sequence[WeightBits]) -> str:
    """Return a line where much of the body, which is all but embedding and head, stays dense; empty elsewhere."""
    body = [each for each in counted if each.kind not in ("embedding", "head")]
    share = sum(each.num_dense for each in body) / sum(each.num_weights for each in body)
    if share < LARGE_SHARE:
        return ""
    largest = max(body, key=lambda each: each.num_dense)
    return f"{share:.0%} of the body's weights stay in 16 bits, most of them {largest.kind}"


def _find_rounded_head(model: PreTrainedModel, config: Config) -> nn.Parameter | None:
    """Return the head's weight where an export has codes of it; where it is the embedding, it has values."""
    found = None if config.quant.head == "none" else find_head(model)
    return None if found is None or found.embedding else model.get_parameter(f"{found.head}.weight")


def _head_bits(weight: nn.Parameter, config: Config) -> int:
    bits = BITS[config.quant.head] + 8 * torch_dtype(config.model.dtype).itemsize / config.quant.group_size
    return int(weight.numel() * bits) + 128  # and its shape, two int64


class _PackedBits:
    """Bits of a matrix [N, K] as it is stored: those that its rows take, and what it has once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._by_width: dict[int, tuple[int, int]] = {}

    def count(self, rows: int, width: int) -> int:
        if width not in self._by_width:
            few, twice = self._pack(_ROWS, width), self._pack(2 * _ROWS, width)
            self._by_width[width] = (2 * few - twice, (twice - few) // _ROWS)
        once, of_a_row = self._by_width[width]
        return once + rows * of_a_row

    def _pack(self, rows: int, width: int) -> int:
        quant = self._config.quant
        quantized = make_grid(quant, torch_dtype(self._config.model.dtype)).quantize(torch.zeros(rows, width))
        return sum(8 * tensor.nbytes for tensor in pack(quantized, quant.format).values())


def _by_kind(model: PreTrainedModel) -> Iterator[tuple[str, str, nn.Parameter]]:
    """Yield kind, name and values of each parameter; shared ones once."""
    experts = tuple(f"{name}." for name, _ in find_expert_containers(model))
    routers = set(find_routers(model))
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings:
            yield "embedding", name, parameter
        elif head is not None and parameter is head.weight:
            yield "head", name, parameter
        elif name.startswith(experts):
            yield "experts", name, parameter
        elif name.rpartition(".")[0] in routers:
            yield "router", name, parameter
        elif name.endswith(".weight") and isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear):
            yield "linear", name, parameter
        else:
            yield "other", name, parameter
