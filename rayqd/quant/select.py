"""Which layers are quantized: every nn.Linear except those that `quant.ignore` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError

USUAL_GROUP_SIZES = (32, 64, 128, 256)


def quantizable_layers(model: nn.Module, quant: QuantConfig) -> dict[str, nn.Linear]:
    """Return the layers to quantize by qualified name, in the model's order; the model may be on the meta device.

    Raises ConfigError when nothing is left to quantize, when `quant.group_size` does not divide a layer's input
    features, or when a layer shares its weight with the embedding, which stays dense.
    """
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    layers = {
        name: module for name, module in modules if isinstance(module, nn.Linear) and not is_ignored(name, quant.ignore)
    }
    if not layers:
        raise ConfigError(
            f"quant.ignore={quant.ignore} leaves no nn.Linear of {type(model).__name__} to quantize; remove entries"
        )
    _check_not_tied(model, layers)
    _check_group_size(layers, quant.group_size)
    return layers


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """Return whether an entry is `name` itself or its last dotted parts: "lm_head", "mlp.down_proj"."""
    return any(name == entry or name.endswith(f".{entry}") for entry in ignore)


def _check_group_size(layers: Mapping[str, nn.Linear], quant_group_size: int) -> None:
    misfits = {name: layer for name, layer in layers.items() if layer.in_features % quant_group_size}
    if not misfits:
        return
    name, layer = next(iter(misfits.items()))
    fitting = [str(g) for g in USUAL_GROUP_SIZES if all(layer.in_features % g == 0 for layer in layers.values())]
    remedy = f"use {' or '.join(fitting)}, or add" if fitting else "none of 32, 64, 128, 256 fits all layers, so add"
    raise ConfigError(
        f"quant.group_size={quant_group_size} does not divide {name}'s {layer.in_features} input features "
        f"({len(misfits)} of {len(layers)} layers do not fit); {remedy} the layers that do not fit to quant.ignore"
    )


def _check_not_tied(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, layer in layers.items():
        if id(layer.weight) in embeddings:
            raise ConfigError(
                f"{name} shares its weight with the embedding, which stays in 16 bits; add {name} to quant.ignore"
            )
