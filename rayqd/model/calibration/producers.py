"""What makes the inputs of linears, and can make them smaller by a scale a channel without any other effect.

That is an RMSNorm, all of whose output goes to linears; and another linear with nothing but products of its channels in
between: up_proj before down_proj (activation(gate) · up), v_proj before o_proj (weighted sums of v).

Shapes: K channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rayqd.model.calibration.statistics import Inputs

if TYPE_CHECKING:
    from jaxtyping import Float


class Producer(Protocol):
    def realized(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        """What `divide` would really divide by, its weights being cast to their dtype."""
        ...

    def divide(self, scales: Float[Tensor, " K"]) -> None:
        """Divide its outputs by `scales`, which are realized ones."""
        ...


class NormProducer:
    def __init__(self, norm: nn.Module, offset: float) -> None:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        self._weight = weight
        self._offset = offset  # what is added to the weight before it multiplies

    def realized(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        gain, divided = self._gain(self._weight), self._gain(self._divided(scales))
        return torch.where((gain == 0) | (divided == 0), 1.0, gain / divided)

    def divide(self, scales: Float[Tensor, " K"]) -> None:
        self._weight.data.copy_(self._divided(scales))

    def _gain(self, weight: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return weight.float() + self._offset

    def _divided(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return (self._gain(self._weight) / scales - self._offset).to(self._weight.dtype)


class LinearProducer:
    def __init__(self, linear: nn.Linear) -> None:
        self._linear = linear

    def realized(self, scales: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
        return scales

    def divide(self, scales: Float[Tensor, " K"]) -> None:
        self._linear.weight.data.copy_(self._linear.weight.float() / scales[:, None])
        if self._linear.bias is not None:
            self._linear.bias.data.copy_(self._linear.bias.float() / scales)


def producer_of(inputs: Inputs, layer: nn.Module) -> Producer | None:
    """None where nothing before the linears can be scaled alone."""
    if inputs.norm is not None:
        offset = gain_offset(inputs.norm)
        return None if offset is None else NormProducer(inputs.norm, offset)
    if len(inputs.linears) != 1:
        return None
    ((_, linear),) = inputs.linears.items()
    for block in layer.modules():
        if getattr(block, "down_proj", None) is linear and hasattr(block, "gate_proj"):
            return _linear_producer(getattr(block, "up_proj", None), linear)
        if getattr(block, "o_proj", None) is linear and not hasattr(block, "v_norm"):
            return _linear_producer(getattr(block, "v_proj", None), linear)
    return None


def gain_offset(norm: nn.Module) -> float | None:
    """0 where the norm multiplies by its weight, 1 where by 1 + weight (Gemma), None where it does something else."""
    weight: Any = norm.weight
    ones = torch.ones_like(weight)  # whose root mean square is 1
    gain, weight = norm(ones).float(), weight.float()
    for offset in (0.0, 1.0):
        if torch.allclose(gain, weight + offset, rtol=1e-2, atol=1e-5):
            return offset
    return None


def _linear_producer(producer: Any, consumer: nn.Linear) -> Producer | None:
    """None under grouped attention, where several of the consumer's channels are one of the producer's."""
    if isinstance(producer, nn.Linear) and producer.out_features == consumer.in_features:
        return LinearProducer(producer)
    return None
