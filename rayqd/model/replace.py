"""The layers of the original model replaced by those that compute with rounded weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from rayqd.config import Config
from rayqd.model.adapters import adapted_names, add_expert_adapters, make_adapted_layer
from rayqd.model.fused_experts import FusedExperts
from rayqd.model.grids import assign_grids
from rayqd.model.qat import QATLinear
from rayqd.model.qat_experts import QATExperts, install_experts
from rayqd.model.read_weight import is_weight_read, with_rounded_weight
from rayqd.quant import Grid, quantizable_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rayqd.model.qat_lora import QATLoraLinear

    QATLayer = QATLinear | QATLoraLinear | QATExperts


def replace_layers(
    model: PreTrainedModel, experts: Mapping[str, FusedExperts], config: Config, grid: Grid, trainable: bool
) -> dict[str, QATLayer]:
    """Replace every quantized layer in `model`, and the parameters `experts`; return the new layers by these names."""
    linears = quantizable_layers(model, config.quant)
    weights = {name: linear.weight for name, linear in linears.items()}
    weights |= {name: model.get_parameter(name) for name in experts}
    adapted = set(adapted_names(weights, config.adapter))
    full = trainable and config.adapter.kind == "none"
    grids = assign_grids(weights, grid)
    if adapted:
        model.requires_grad_(False)  # all but the adapters
    layers: dict[str, QATLayer] = {}
    for name, linear in linears.items():
        if name in adapted:
            layer = make_adapted_layer(linear, config.adapter, grids[name])
        else:
            layer = QATLinear(linear, grids[name], trainable=full)
        parent, _, leaf = name.rpartition(".")
        layers[name] = with_rounded_weight(layer) if is_weight_read(model.get_submodule(parent), leaf) else layer
        replace_module(model, name, layers[name])
    for name in experts:
        layer = QATExperts(weights[name], grids[name], trainable=full)
        if name in adapted:
            add_expert_adapters(layer, config.adapter)
        parent, _, leaf = name.rpartition(".")
        install_experts(model.get_submodule(parent), {leaf: layer})
        layers[name] = layer
    return layers


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one called `name`."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
