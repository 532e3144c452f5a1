"""How far what leaves each quantized layer is from what leaves it in the original model, on the tokens of a short row.

Both models read the row from its first layer on, so that a layer's error holds what the layers before it have done,
and what training made of that: it is the error that the next layer meets.

Shapes: T tokens, of which t are kept, N outputs of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from rayqd.config.sections import QuantConfig
from rayqd.model.calibration.previous_op import PREVIOUS_LINEARS
from rayqd.model.decoder_layers import eager_layers
from rayqd.quant import quantizable_layers
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_BYTES = 1 << 26  # of the outputs that a run keeps: a model of 135M has less of 64 tokens
_LEAST_TOKENS = 8
_TOKENS, _KEPT, _OUTPUT = "token_ids", "kept", "output."  # names in the file

Compute = Callable[["PreTrainedModel", IntArray], object]  # runs a model on a row, [T]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReference:
    """What leaves the layers of the original model on a row."""

    token_ids: Tensor  # [T]
    kept: Tensor  # [t] positions in the row, all of them unless the model is wide
    outputs: Mapping[str, Tensor]  # [t, N] by the layer's name

    @classmethod
    def record(
        cls, model: PreTrainedModel, quant: QuantConfig, methods: Collection[str], token_ids: IntArray, compute: Compute
    ) -> OutputReference:
        """Run the original model; what is rounded of it comes to its own outputs, but for what AWQ divides on purpose.

        `methods` are all that move weights before a model is rounded that is to be compared. A layer that is not
        called by itself, or sees other rows than the tokens, as an expert does, is left out.
        """
        layers = quantizable_layers(model, quant)
        names = [n for n in layers if "awq" not in methods or n.rpartition(".")[2] not in PREVIOUS_LINEARS]
        kept = _spread(len(token_ids), 4 * sum(layers[name].out_features for name in names))
        outputs = _record(model, names, token_ids, kept, compute)
        return cls(token_ids=torch.from_numpy(token_ids), kept=kept, outputs=outputs)

    def errors(self, model: PreTrainedModel, compute: Compute) -> dict[str, float]:
        """Return ‖y - y*‖ / ‖y*‖ of what leaves each layer of a rounded `model`, as the root mean square over tokens.

        Each token counts the same: in most models the first one's states are a hundred times as large as all others.
        """
        found: dict[str, float] = {}
        for name, output in _record(model, [*self.outputs], self.token_ids.numpy(), self.kept, compute).items():
            error = _relative_error(output, self.outputs[name])
            if math.isfinite(error):
                found[name] = float(f"{error:.5g}")
        return found

    def save(self, file: Path) -> None:
        """Write a safetensors file."""
        named = {f"{_OUTPUT}{name}": tensor.contiguous() for name, tensor in self.outputs.items()}
        save_file({_TOKENS: self.token_ids, _KEPT: self.kept, **named}, file)

    @classmethod
    def load(cls, file: Path) -> OutputReference | None:
        """Read what `save` wrote; None where it is not there, as in runs from before it was kept."""
        if not file.exists():
            return None
        tensors = load_file(file)
        outputs = {name.removeprefix(_OUTPUT): t for name, t in tensors.items() if name.startswith(_OUTPUT)}
        return cls(token_ids=tensors[_TOKENS], kept=tensors[_KEPT], outputs=outputs)


def _relative_error(output: Tensor, original: Tensor) -> float:
    original = original.double()
    size = original.square().sum(-1)
    difference = (output.double() - original).square().sum(-1)
    return (difference[size > 0] / size[size > 0]).mean().sqrt().item()


def _spread(num_tokens: int, bytes_per_token: int) -> Tensor:
    """Return as many positions as there is room for, evenly spread, [t]."""
    most = max(_LEAST_TOKENS, _MOST_BYTES // max(1, bytes_per_token))
    return torch.linspace(0, num_tokens - 1, min(num_tokens, most)).round().long()


def _record(
    model: PreTrainedModel, names: Sequence[str], token_ids: IntArray, kept: Tensor, compute: Compute
) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            rows = output.detach().flatten(0, -2) if isinstance(output, Tensor) else None
            if rows is not None and len(rows) == len(token_ids):
                outputs[name] = rows[kept.to(rows.device)].cpu()

        return hook

    with _hooked({model.get_submodule(name): keep(name) for name in names}), eager_layers(model):
        compute(model, token_ids)
    return outputs


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Any], None]]) -> Iterator[None]:
    """Call `hooks` meanwhile."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
