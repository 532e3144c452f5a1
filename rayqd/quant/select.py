"""Which layers are quantized: every nn.Linear except routers and gates, and those that `quant.ignore` names.

Classes derived from nn.Linear, with a forward pass of their own (Falcon), and layers that share a weight (Zamba 2) stay
as they are: no reader unpacks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.quant.routers import find_routers
from rayqd.quant.towers import find_towers

_HEAD = "lm_head"  # in `quant.ignore` stands for the output head, whatever a model calls it
USUAL_GROUP_SIZES = (32, 64, 128, 256)


def quantizable_layers(model: nn.Module, quant: QuantConfig) -> dict[str, nn.Linear]:
    """Return the layers to quantize by qualified name, in the model's order; the model may be on the meta device.

    Routers of experts stay as they are, every layer with one output, which is a gate, and towers for images or sound.

    Raises ConfigError when nothing is left to quantize, when `quant.group_size` does not divide a layer's input
    features, or when a layer is the output head or shares its weight with the embedding, which stay dense.
    """
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    routers, is_tower = find_routers(model), find_towers(model)
    head, shared = _output_head(model), _shared_weights(model)
    layers = {
        name: module
        for name, module in modules
        if type(module) is nn.Linear
        and module.out_features > 1
        and not (module is head and _HEAD in quant.ignore)
        and (module is head or f"{name}.weight" not in shared)
        and name not in routers
        and not is_tower(name)
        and not is_ignored(name, quant.ignore)
    }
    if not layers:
        raise ConfigError(_explain_nothing_left(model, quant))
    _check_not_tied(model, layers)
    _check_group_size(layers, quant.group_size)
    return layers


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """Return whether an entry is `name` itself or its last dotted parts: "lm_head", "mlp.down_proj"."""
    return any(name == entry or name.endswith(f".{entry}") for entry in ignore)


def _explain_nothing_left(model: nn.Module, quant: QuantConfig) -> str:
    kind = type(model).__name__
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    convolutions = next((name for name, module in modules if type(module).__name__ == "Conv1D"), None)
    if convolutions is not None:
        return (
            f"{kind} keeps its layers as transformers' Conv1D ({convolutions}), which no reader of 4-bit files loads: "
            "choose a model whose layers are nn.Linear"
        )
    derived = next((type(m).__name__ for m in model.modules() if isinstance(m, nn.Linear) and _is_derived(m)), None)
    if derived is not None:
        return (
            f"{kind} keeps its layers as {derived}, a class of its own that no reader of 4-bit files loads: choose a "
            "model whose layers are nn.Linear"
        )
    return f"quant.ignore={quant.ignore} leaves no nn.Linear of {kind} to quantize; remove entries"


def _is_derived(module: nn.Module) -> bool:
    return type(module) is not nn.Linear


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
    head = _output_head(model)
    for name, layer in layers.items():
        if id(layer.weight) in embeddings:
            raise ConfigError(
                f"{name} shares its weight with the embedding: leave {name} in quant.ignore, and set quant.head to "
                "int8 or int4 if both are to have fewer bits"
            )
        if layer is head:
            raise ConfigError(
                f"{name} is the output head, which is no layer among others: leave {name} in quant.ignore, and set "
                "quant.head to int8 or int4 if it is to have fewer bits"
            )


def _output_head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    return cast("nn.Module | None", find()) if find else None


def _shared_weights(model: nn.Module) -> set[str]:
    """Return the names of weights that are another's, and of those."""
    tied = cast("Mapping[str, str]", getattr(model, "all_tied_weights_keys", None) or {})
    return {*tied.keys(), *tied.values()}
