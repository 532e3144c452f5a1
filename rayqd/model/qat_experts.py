"""Experts whose forward pass uses the weights that will be exported: each expert's Q(W + s·BA), or Q(W).

Shapes: E experts, K inputs, N outputs, r rank. W is [E, N, K], A is [E, r, K], B is [E, N, r].

Rows are rounded one by one, so that all experts are rounded at once, as [E·N, K]. The model's own module computes with
them, whichever of transformers' implementations that is: for the time of the call the values stand where the
parameter was. On a GPU they are computed anew in the backward pass, as those of linear layers are.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayqd.model.fake_quantize import fake_quantize, fake_quantize_backward
from rayqd.model.fake_quantized_linear import FakeQuantizer, make_fake_quantizer
from rayqd.quant import Grid, Quantized


class QATExperts(nn.Module):
    """The weights [E, N, K] of all experts of a layer; trains them in float32, or adapters inside the rounding."""

    def __init__(self, weight: Tensor, grid: Grid, *, trainable: bool = False) -> None:
        super().__init__()
        self.quantizer: FakeQuantizer = make_fake_quantizer(grid)
        weight = weight.detach().float() if trainable else weight.detach()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.scaling, self.outside = 0.0, False

    def add_adapters(self, rank: int, alpha: float, *, outside: bool, stops_saturated: bool) -> None:
        """Give each expert an adapter in float32 that changes nothing yet; first values are drawn as PEFT's are."""
        e, n, k = self.weight.shape
        a = torch.empty(e, rank, k).uniform_(-1 / math.sqrt(k), 1 / math.sqrt(k))
        self.lora_A["default"] = nn.Parameter(a.to(self.weight.device))
        self.lora_B["default"] = nn.Parameter(torch.zeros(e, n, rank, device=self.weight.device))
        self.scaling, self.outside = alpha / rank, outside
        self.quantizer = make_fake_quantizer(self.grid, stops_saturated=stops_saturated)

    @property
    def grid(self) -> Grid:
        """Return the grid that all experts round on."""
        return self.quantizer.grid

    @property
    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Return A and B of all experts; None without adapters."""
        return (self.lora_A["default"], self.lora_B["default"]) if len(self.lora_A) else None

    def merged_weight(self) -> Tensor:
        """Return what gets quantized, [E·N, K] in float32."""
        with torch.no_grad():
            return _merge(self.weight, *(self.factors or (None, None)), self.scaling)

    def quantize(self, name: str) -> Quantized:
        """Return codes and scales [E·N, ...] of the moment, what forward uses unless the adapter is outside."""
        return self.grid.quantize(self.merged_weight(), name=name)

    def forward(self) -> Tensor:
        """Return the values that experts compute with, [E, N, K] in the grid's dtype."""
        a, b = self.factors or (None, None)
        if not self.outside or a is None or b is None:
            return _FakeQuantizedExperts.apply(self.weight, a, b, self.scaling, self.quantizer)  # type: ignore[no-any-return]
        values = _FakeQuantizedExperts.apply(self.weight, None, None, 0.0, self.quantizer)
        return values + torch.bmm(self.scaling * b, a).to(values.dtype)  # type: ignore[no-any-return]


def install_experts(module: nn.Module, layers: dict[str, QATExperts]) -> None:
    """Have a module of experts compute with the values of `layers`, which take the place of its parameters by name."""
    for name, layer in layers.items():
        delattr(module, name)
        module.add_module(name, layer)
    module.forward = MethodType(_forward, module)


def restore_experts(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Undo `install_experts`: the parameters are there again, and have `values`."""
    for name, tensor in values.items():
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    vars(module).pop("forward", None)


@torch.compiler.disable
def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if next(self.parameters()).is_cuda and torch.is_grad_enabled():
        return checkpoint(_compute, self, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    return _compute(self, *args, **kwargs)


def _compute(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    layers = {name: layer for name, layer in self.named_children() if isinstance(layer, QATExperts)}
    attributes = vars(self)
    try:
        attributes.update({name: layer() for name, layer in layers.items()})  # found before submodules of these names
        return type(self).forward(self, *args, **kwargs)
    finally:
        for name in layers:
            attributes.pop(name, None)


def _merge(weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float) -> Tensor:
    """Return W + s·BA of all experts, [E·N, K] in float32; s comes first, so that adding W is one rounding."""
    merged = weight.detach().float()
    if a is not None and b is not None:
        merged = merged + torch.bmm(scaling * b.float(), a.float())
    return merged.flatten(0, 1)


class _FakeQuantizedExperts(torch.autograd.Function):
    """Q(W + s·BA) of all experts with the straight-through gradient; G is that of the values.

    dW = G, dA = s·BᵀG, dB = s·GAᵀ for each expert, with G zero where a code saturated if that stops it.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, weight: Tensor, a: Tensor | None, b: Tensor | None, scaling: float, quantizer: FakeQuantizer
    ) -> Tensor:
        ctx.save_for_backward(weight, a, b)
        ctx.scaling, ctx.quantizer = scaling, quantizer
        return fake_quantize(_merge(weight, a, b, scaling), None, quantizer.grid).reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        weight, a, b = ctx.saved_tensors
        gradient = grad_outputs[0]
        if a is None or ctx.quantizer.stops_saturated:
            merged = _merge(weight, a, b, ctx.scaling)
            rows = gradient.flatten(0, 1).clone()  # which the kernel may write over
            gradient = fake_quantize_backward(merged, None, ctx.quantizer.grid, rows)[1].reshape(weight.shape)
        if a is None or b is None:
            return gradient.to(weight.dtype) if ctx.needs_input_grad[0] else None, None, None, None, None
        grad_a = ctx.scaling * torch.bmm(b.to(gradient.dtype).mT, gradient).to(a.dtype)
        grad_b = ctx.scaling * torch.bmm(gradient, a.to(gradient.dtype).mT).to(b.dtype)
        return None, grad_a, grad_b, None, None
