"""Layers whose weight is read by the module around them, past their forward pass: it must be the rounded one there too.

Mamba multiplies its time steps with `self.dt_proj.weight`. A quantized layer keeps under that name what is being
trained. So where the code of an architecture reads a layer's weight, the name stands for what the layer computes with;
where it only looks at dtype or device, nothing is lost by that.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayqd.model.fake_quantized_linear import fake_quantized_linear
from rayqd.model.qat import QATLinear

if TYPE_CHECKING:
    from rayqd.model.qat_lora import QATLoraLinear


def is_weight_read(parent: nn.Module, leaf: str) -> bool:
    """Return whether the code that `parent` comes from reads the weight of a layer called `leaf`."""
    return re.search(rf"\.{re.escape(leaf)}\.weight\b", _source_of(type(parent).__module__)) is not None


def with_rounded_weight(layer: QATLinear | QATLoraLinear) -> QATLinear | QATLoraLinear:
    """Let the `weight` of `layer` be the rounded one, differentiable; everything else of it stays."""
    if isinstance(layer, QATLinear):
        layer.__class__ = _RoundedLinear
    else:
        from rayqd.model.qat_lora import RoundedLoraLinear

        layer.__class__ = RoundedLoraLinear
    return layer


class _RoundedLinear(QATLinear):
    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return Q(W), [N, K] in the grid's dtype."""
        x = _identity(self.original).to(self.grid.dtype)  # whose rows become the columns of Q(W)
        return fake_quantized_linear(x, self.original, None, None, self.quantizer).mT

    @property
    def original(self) -> Tensor:
        """Return W."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def merged_weight(self) -> Tensor:
        return self.original.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantized_linear(x, self.original, None, self.bias, self.quantizer)


def _identity(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[1], device=weight.device)


@cache
def _source_of(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):  # a class typed into an interpreter
        return ""
