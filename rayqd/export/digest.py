"""Fingerprints of the weights that training ended with, made where they were trained.

The merged weight W + s·BA is computed in float32. Another device may round its last bit otherwise, and then a code, so
an export made elsewhere from a checkpoint cannot prove itself by computing the same thing twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.model.fused_experts import split_experts
from rayqd.model.sharding import full_tensor
from rayqd.model.student import Student
from rayqd.model.wire import to_wire

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def digest_layers(student: Student, gather: Callable[[Tensor], Tensor] = full_tensor) -> dict[str, Tensor]:
    """Return the SHA-256 of each quantized layer's values, uint8 [32], by its name in the original model.

    Collective: `gather` returns the full tensor of a sharded weight.
    """
    return {name: digest(student.grid.dequantize(quantized)) for name, quantized in student.quantized_layers(gather)}


def digest(values: Tensor) -> Tensor:
    """Return the SHA-256 of the bits of a weight, uint8 [32]."""
    bits = hashlib.sha256(to_wire(values + 0.0).bits.tobytes()).digest()  # -0.0 is 0.0
    return torch.frombuffer(bytearray(bits), dtype=torch.uint8)


def find_differing_layers(recorded: Mapping[str, Tensor], model: PreTrainedModel) -> Sequence[str]:
    """Return the layers of `recorded` whose weight in `model`, a loaded export, is missing or has another digest."""
    weights = split_experts(model, model.state_dict(), lambda _: True)

    def differs(layer: str) -> bool:
        values = weights.get(f"{layer}.weight")
        return values is None or not torch.equal(digest(values), recorded[layer].cpu())

    return [layer for layer in recorded if differs(layer)]
