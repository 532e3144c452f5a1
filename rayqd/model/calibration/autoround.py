"""AutoRound (Cheng et al. 2023) of one decoder layer: the rounding whose output is nearest to the original layer's.

    quantized layers before ─► inputs ─► layer, its weights rounded with offsets ─► outputs ┐
                                                                                            ├─► squared error
    original layers before ──► inputs ─► layer as it is ─────────────────────────► outputs ─┘   ─► sign of its gradient

So a layer also makes up for what the rounding of those before it has done to its inputs. Which sequences a step takes
follows from their lengths and the layer alone; how many of them go through the layer at once changes no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from rayqd.errors import ModelError, WorkerError
from rayqd.model.calibration.layer_inputs import LayerInputs, MakeWeights
from rayqd.model.out_of_memory import is_out_of_memory
from rayqd.quant.groups import check_finite
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.learned_rounding import LearnedRounding

TOKENS_A_STEP = 4096  # at most, but for a longer sequence, which is a step's only one
BYTES_A_WEIGHT = 48  # float32: weight, offset, gradient, and what the rounding keeps for it
_GIB = 2**30


class AutoRound:
    """Signed gradient descent on the offsets and shares of a layer's weights."""

    def __init__(self, grid: Int4Grid, steps: int) -> None:
        """Take `steps` a layer: the first changes an offset by 1 / steps, the last by next to nothing."""
        self._grid = grid
        self._steps = steps

    def change_layer(
        self, index: int, name: str, weights: Mapping[str, Tensor], inputs: LayerInputs, targets: LayerInputs
    ) -> list[str]:
        """Change `weights`, by their names in layer `index`, so that rounding them to nearest gives the least error.

        `inputs` are before the layer, `targets` behind the original one. Where rounding to nearest is not beaten over
        all sequences, nothing changes. Returns the names of experts that no step's tokens have reached; they keep
        their weights too. `name` is the layer's.

        Raises ModelError where weights or inputs are not finite, WorkerError where memory does not suffice.
        """
        for within, weight in weights.items():
            check_finite(weight, weight, name=f"{name}.{within}")
        if not weights:
            return []
        try:
            layer = _Layer(index, weights, self._grid, inputs, targets)
            of_nearest = layer.error_of_nearest()
            if not of_nearest < float("inf"):
                raise ModelError(
                    f"{name} is given inputs that are inf or nan, and AutoRound cannot use them; check the model"
                )
            layer.learn(self._steps)
            if layer.error() < of_nearest:
                layer.keep()
        except RuntimeError as error:  # torch's are
            if not is_out_of_memory(error):
                raise
            number = sum(weight.numel() for weight in weights.values())
            raise WorkerError(
                f"{name}: no memory for learning how to round its {number:,} weights, which takes "
                f"{number * BYTES_A_WEIGHT / _GIB:.1f} GiB: use gptq (quant.init, or quant.method of `rayqd quantize`)"
            ) from error
        return layer.without_tokens


class _Layer:
    """One decoder layer while its rounding is learned."""

    def __init__(
        self, index: int, weights: Mapping[str, Tensor], grid: Int4Grid, inputs: LayerInputs, targets: LayerInputs
    ) -> None:
        self._index, self._weights, self._grid = index, weights, grid
        self._inputs, self._targets = inputs, targets
        self._roundings = {name: LearnedRounding(w.reshape(-1, w.shape[-1]), grid) for name, w in weights.items()}
        # Of each expert, or of all of a linear layer, whether a gradient has come to it.
        self._reached = {name: torch.zeros(_num_experts(w), dtype=torch.bool) for name, w in weights.items()}

    @property
    def without_tokens(self) -> list[str]:
        """Return the experts that no gradient has come to, as `mlp.experts.down_proj[3]`."""
        experts = [(name, reached) for name, reached in self._reached.items() if self._weights[name].dim() == 3]
        return [f"{name}[{e}]" for name, reached in experts for e in torch.nonzero(~reached).flatten().tolist()]

    def error_of_nearest(self) -> float:
        """Return the squared error where all weights are rounded to nearest, over all sequences."""
        nearest = {name: self._to_nearest(weight) for name, weight in self._weights.items()}
        return self._sum(lambda: nearest)

    def error(self) -> float:
        """Return that of what has been learned."""
        learned = self._values()
        return self._sum(lambda: learned)

    def learn(self, steps: int) -> None:
        """Take steps of signed gradient descent, each on one group of sequences."""
        parameters = [parameter for each in self._roundings.values() for parameter in each.parameters]
        draw = torch.Generator().manual_seed(self._index)
        for step in range(steps):
            group = int(torch.randint(self._inputs.num_groups, (), generator=draw))

            def gradients(outputs: Tensor, numbers: list[int]) -> tuple[Tensor, ...]:
                if not outputs.requires_grad:
                    raise ModelError(f"layer {self._index} lets no gradient through, which AutoRound needs: use gptq")
                return torch.autograd.grad(self._squares(outputs, numbers), parameters, materialize_grads=True)

            with torch.enable_grad():
                calls = self._inputs.try_group(self._index, group, gradients, self._values)
            rate = (1 - step / steps) / steps
            with torch.no_grad():
                summed = [reduce(torch.add, parts) for parts in zip(*calls, strict=True)]
                for parameter, gradient in zip(parameters, summed, strict=True):
                    parameter.sub_(gradient.sign(), alpha=rate)
            for (name, rounding), gradient in zip(self._roundings.items(), summed[::2], strict=True):
                rounding.clamp_()
                reached = self._reached[name]
                reached |= gradient.reshape(len(reached), -1).any(-1).cpu()

    def keep(self) -> None:
        """Change the weights to what has been learned, but for those of experts that no gradient has come to."""
        for name, weight in self._weights.items():
            reached = self._reached[name].to(weight.device).reshape(-1, *(1 for _ in weight.shape[1:]))
            learned = self._roundings[name].weights().reshape(weight.shape).to(weight.dtype)
            weight.copy_(torch.where(reached, learned, weight))

    def _values(self) -> dict[str, Tensor]:
        return {name: each.values().reshape(self._weights[name].shape) for name, each in self._roundings.items()}

    def _to_nearest(self, weight: Tensor) -> Tensor:
        return self._grid.dequantize(self._grid.quantize(weight.reshape(-1, weight.shape[-1]))).reshape(weight.shape)

    def _squares(self, outputs: Tensor, numbers: list[int]) -> Tensor:
        return (outputs.float() - self._targets.hidden_of(numbers).float()).square().sum()

    def _sum(self, weights: MakeWeights) -> float:
        groups = range(self._inputs.num_groups)
        calls = [self._inputs.try_group(self._index, group, self._squares, weights) for group in groups]
        return sum(float(each) for group in calls for each in group)


def _num_experts(weight: Tensor) -> int:
    return weight.shape[0] if weight.dim() == 3 else 1
