"""The op whose outputs are the inputs of linears, where it can take over AWQ's scales: X / s without any other effect.

That is an RMSNorm, all of whose output goes to linears; and another linear with nothing but products of its channels in
between: up_proj before down_proj (activation(gate) · up), v_proj before o_proj (weighted sums of v). The reference
implementation of AWQ (Lin et al. 2023) calls it `prev_op`.

Shapes: K channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rayqd.model.calibration.statistics import InputStatistics

if TYPE_CHECKING:
    from jaxtyping import Float


PREVIOUS_LINEARS = ("up_proj", "v_proj")  # the names of linears that may take over scales


class PreviousOp(Protocol):
    """An op whose outputs can be divided by a scale a channel, by changing its weights."""

    def round_scales(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return what `divide_outputs` would divide by in effect, the op's weights being cast to their dtype."""
        ...

    def divide_outputs(self, scales: Float[Tensor, " K"]) -> None:
        """Divide each output channel by its scale; `scales` come from `round_scales`."""
        ...


class PreviousNorm:
    """An RMSNorm that multiplies by its weight plus `offset`: 0 in most models, 1 in Gemma."""

    def __init__(self, norm: nn.Module, offset: float) -> None:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        self._weight = weight
        self._offset = offset

    def round_scales(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return the ratio of the norm's gain before and after; 1 for a channel whose gain is zero."""
        gain, new_gain = self._gain(self._weight), self._gain(self._new_weight(scales))
        return torch.where((gain == 0) | (new_gain == 0), 1.0, gain / new_gain)

    def divide_outputs(self, scales: Float[Tensor, " K"]) -> None:
        """Write the norm's new weight in place."""
        self._weight.data.copy_(self._new_weight(scales))

    def _gain(self, weight: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return weight.float() + self._offset

    def _new_weight(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return (self._gain(self._weight) / scales - self._offset).to(self._weight.dtype)


class PreviousLinear:
    """A linear layer, whose rows and bias are divided."""

    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def round_scales(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """Return `scales` as they are: the cast changes each weight of a row by another factor."""
        return scales

    def divide_outputs(self, scales: Float[Tensor, " K"]) -> None:
        """Write the layer's new weight and bias in place."""
        self._linear.weight.data.copy_(self._linear.weight.float() / scales[:, None])
        if self._linear.bias is not None:
            self._linear.bias.data.copy_(self._linear.bias.float() / scales)


def find_previous_op(inputs: InputStatistics, layer: nn.Module) -> PreviousOp | None:
    """Return the op before the linears of `inputs`; None where nothing before them can be scaled alone."""
    if inputs.norm is not None:
        offset = detect_gain_offset(inputs.norm)
        return None if offset is None else PreviousNorm(inputs.norm, offset)
    if len(inputs.linears) != 1:
        return None
    ((_, linear),) = inputs.linears.items()
    for block in layer.modules():
        if getattr(block, "down_proj", None) is linear and hasattr(block, "gate_proj"):
            return _previous_linear(getattr(block, "up_proj", None), linear)
        if getattr(block, "o_proj", None) is linear and not hasattr(block, "v_norm"):
            return _previous_linear(getattr(block, "v_proj", None), linear)
    return None


def detect_gain_offset(norm: nn.Module) -> float | None:
    """Return 0 where the norm multiplies by its weight, 1 where by 1 + weight (Gemma), None where by something else."""
    weight: Any = norm.weight
    ones = torch.ones_like(weight)  # whose root mean square is 1
    gain, weight = norm(ones).float(), weight.float()
    for offset in (0.0, 1.0):
        if torch.allclose(gain, weight + offset, rtol=1e-2, atol=1e-5):
            return offset
    return None


def _previous_linear(previous: Any, linear: nn.Linear) -> PreviousOp | None:
    """Return None under grouped attention, where several input channels of `linear` are one of the previous layer's."""
    if isinstance(previous, nn.Linear) and previous.out_features == linear.in_features:
        return PreviousLinear(previous)
    return None
