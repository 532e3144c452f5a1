"""Whether calibration, which runs a model's decoder layers one after the other, gets what the whole model computes.

Tried on a tiny copy of the configuration, as the forward pass itself is: layers may be handed what earlier layers made,
or return more than hidden states, and then a statistic would be that of another model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rayqd.config.sections import METHODS
from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError
from rayqd.model.calibration.layer_inputs import LayerInputs
from rayqd.model.calibration.sequential import decoder_layers_of
from rayqd.model.forward.batches import batch_rows
from rayqd.model.forward.call import inputs_of_rows
from rayqd.model.forward.head_form import TOLERANCE, distance
from rayqd.model.forward.of_model import mode_of
from rayqd.model.forward.probe import make_random, random_rows
from rayqd.model.token_limit import TokenLimit

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_MOST_TOKENS = 1000  # more than all rows have


def check_layer_by_layer(config: PreTrainedConfig, method: str) -> None:
    """Raise ModelError where `method`, one of METHODS, cannot go through models of `config` layer by layer."""
    if method == "rtn":
        return
    name = type(config).__name__.removesuffix("Config")
    with quiet_libraries(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = make_random(config)
        layers = decoder_layers_of(model, method)
        try:
            error = layer_by_layer_error(model, layers)
        except Exception as exception:
            reason = f"{type(exception).__name__}: {' '.join(str(exception).split())[:160]}"
            raise ModelError(_refusal(name, method, reason)) from exception
    if error > TOLERANCE:
        raise ModelError(_refusal(name, method, f"their outputs are off by {error:.2g} of their size"))


@torch.no_grad()
def layer_by_layer_error(model: PreTrainedModel, layers: nn.ModuleList) -> float:
    """Return how far the last layer's outputs are from those in the whole model, as a share of their size."""
    rows = random_rows(model)
    limit = TokenLimit(tokens=_MOST_TOKENS, setting="", advice="this machine has no memory for a tiny model")
    inputs = LayerInputs(model, layers, [row.int().numpy() for row in rows], limit)
    for index in range(len(layers)):
        inputs.advance(index)
    expected: list[Tensor] = []

    def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        expected.append(output[0] if isinstance(output, tuple) else output)

    handle = layers[-1].register_forward_hook(hook)
    for batch in batch_rows(model, [len(row) for row in rows], _MOST_TOKENS, allow_padding=False):
        model.base_model(use_cache=False, **inputs_of_rows(model, [rows[i] for i in batch], mode_of(model)))
    handle.remove()
    return max(distance(own, whole) for own, whole in zip(inputs.hidden, expected, strict=True))


def _refusal(name: str, method: str, reason: str) -> str:
    said = f"{METHODS[method]} cannot run the layers of {name} models one by one ({reason})"
    return f"{said}: round to nearest (rtn) instead"
