"""Which layers get an adapter, what takes their place, and the names of its tensors in a file, which are PEFT's.

PEFT would choose layers by name once more, and for models with experts takes some names for something else. So each
layer that rayqd has chosen is made here, of PEFT's own class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rayqd.config.sections import AdapterConfig
from rayqd.errors import ConfigError
from rayqd.model.import_transformers import import_peft
from rayqd.model.qat_experts import QATExperts
from rayqd.quant import Grid

if TYPE_CHECKING:
    from rayqd.model.qat_lora import QATLoraLinear

_NAME = "default"  # PEFT's, of a model's only adapter


def adapted_names(quantized: Iterable[str], adapter: AdapterConfig) -> list[str]:
    """Return which of the quantized layers get an adapter, in their order. Raises ConfigError where none does."""
    names = list(quantized)
    if adapter.kind == "none":
        return []
    if not adapter.targets:
        return names
    adapted = [name for name in names if any(f".{name}".endswith(f".{target}") for target in adapter.targets)]
    if not adapted:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ConfigError(f"adapter.targets={adapter.targets} names no quantized layer; the model has {kinds}")
    return adapted


def describe_unadapted(quantized: Iterable[str], adapter: AdapterConfig) -> str:
    """Return a line on quantized layers that `adapter.targets` leaves untrained; empty where there are none."""
    names = list(quantized)
    adapted = set(adapted_names(names, adapter))
    left = [name for name in names if name not in adapted]
    if adapter.kind == "none" or not left:
        return ""
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in left}))
    return f"adapter.targets leaves {len(left)} of {len(names)} quantized layers without an adapter: {kinds}"


def make_adapted_layer(linear: nn.Linear, adapter: AdapterConfig, grid: Grid) -> QATLoraLinear:
    """Return the layer that takes the place of `linear`; the adapter is float32 and on its device."""
    import_peft()
    from peft import LoraConfig

    from rayqd.model.qat_lora import QATLoraLinear

    config = LoraConfig(r=adapter.rank, lora_dropout=0.0)  # none: a merged weight cannot have it
    layer = QATLoraLinear(linear, _NAME, config=config, r=adapter.rank, lora_alpha=lora_alpha(adapter))  # pyright: ignore[reportArgumentType]
    for name, parameter in layer.named_parameters():
        if is_adapter(f".{name}"):  # PEFT takes the dtype of the weights, where most steps round to nothing
            parameter.data = parameter.data.float()
    layer.set_quantizer(grid, outside=adapter.placement == "outside", stops_saturated=adapter.saturated == "stop")
    return layer


def add_expert_adapters(layer: QATExperts, adapter: AdapterConfig) -> None:
    """Give every expert of `layer` an adapter of its own."""
    outside, stops = adapter.placement == "outside", adapter.saturated == "stop"
    layer.add_adapters(adapter.rank, lora_alpha(adapter), outside=outside, stops_saturated=stops)


def lora_alpha(adapter: AdapterConfig) -> float:
    """Return what, divided by the rank, scales the adapter."""
    return adapter.alpha if adapter.alpha is not None else 2 * adapter.rank


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name in the model belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def adapter_state(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the adapters among a model's parameters, under PEFT's names in a file, without the adapter's name."""
    return {_file_name(n): p.detach().contiguous() for n, p in parameters.items() if is_adapter(n)}


@torch.no_grad()
def load_adapter_state(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy what `adapter_state` returned into the adapters among `parameters`."""
    for name, parameter in parameters.items():
        if is_adapter(name) and (file_name := _file_name(name)) in state:
            parameter.copy_(state[file_name])


def _file_name(name: str) -> str:
    return name.replace(f".{_NAME}", "")
