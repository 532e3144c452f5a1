"""The student: the original model whose linear layers compute with 4-bit weights that are being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rayqd.config import Config
from rayqd.config.sections import AdapterConfig
from rayqd.errors import ConfigError
from rayqd.model.decoder_layers import checkpoint_layers, uncompile_layers
from rayqd.model.grids import assign_grids
from rayqd.model.load import load_model, output_head, torch_dtype
from rayqd.model.qat import QATLinear, QATLoraLinear
from rayqd.model.sharding import assign, full_tensor, shard
from rayqd.quant import Grid, Quantized, make_grid, quantizable_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Student:
    """The model with its quantization-aware layers and trainable parameters, and the codes that they round to."""

    def __init__(
        self, model: PreTrainedModel, config: Config, *, trainable: bool = True, mesh: DeviceMesh | None = None
    ) -> None:
        """Replace the quantized layers of `model` in place.

        Not `trainable`: the weights that would be trained stay as they are, in the model's own dtype.

        `mesh`: the workers over which full QAT shards those weights; the methods marked "collective" are then called by
        all of them at the same time.
        """
        self.grid: Grid = make_grid(config.quant, torch_dtype(config.model.dtype))
        self.quant, self.adapter = config.quant, config.adapter
        torch.manual_seed(config.seed)  # the adapters' first values: the same on every worker and after every restart
        self.layers = _replace_linears(model, config, self.grid, trainable and mesh is None)
        self.model = model
        self._shards = shard(model, self.layers, mesh) if mesh is not None else None
        if config.learner.gradient_checkpointing:
            checkpoint_layers(model)

    @classmethod
    def load(cls, directory: Path, config: Config) -> Student:
        """Load the checkpoint in `directory` as an untrained student."""
        return cls(load_model(directory, config.model.dtype), config)

    @property
    def head(self) -> Tensor:
        """Return the output head, [V, d]; not trained."""
        return output_head(self.model)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name; of a sharded student this worker's rows, as DTensors."""
        if self._shards is not None:
            return dict(self._shards)  # the model has others in their place while it computes
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def quantized_layers(self, gather: Callable[[Tensor], Tensor] = full_tensor) -> Iterator[tuple[str, Quantized]]:
        """Yield name in the original model, codes and scales of every quantized layer; exactly what forward uses.

        Collective; `gather` returns the full tensor of a sharded weight.
        """
        for name, layer in self.layers.items():
            if self._shards is None:
                yield name, layer.quantize(name)
            else:
                weight = gather(self._shards[f"{name}.weight"].detach())
                yield name, layer.grid.quantize(weight.to(self.head.device), name=name)

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """Let the model compute with the weights of the export, as it always does unless adapters are outside."""
        outside = [layer for layer in self.layers.values() if isinstance(layer, QATLoraLinear) and layer.outside]
        for layer in outside:
            layer.outside = False
        try:
            yield
        finally:
            for layer in outside:
                layer.outside = True

    def to_plain_model(self) -> PreTrainedModel:
        """Turn the student into the model of the export: plain linear layers with the values of the codes."""
        uncompile_layers(self.model)
        for name, layer in self.layers.items():
            weight = layer.grid.dequantize(layer.quantize(name))
            plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
            plain.weight = nn.Parameter(weight, requires_grad=False)
            plain.bias = _bias(layer)  # pyright: ignore[reportAttributeAccessIssue]
            _replace(self.model, name, plain)
        self.layers = {}
        if self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        return self.model.eval().requires_grad_(False)

    def dense_tensors(self) -> dict[str, Tensor]:
        """Return everything that is not quantized, by its name in the original model."""
        quantized = tuple(f"{name}." for name in self.layers)
        state = self.model.state_dict()
        dense = {name: tensor for name, tensor in state.items() if not name.startswith(quantized)}
        biases = {f"{n}.bias": b for n, layer in self.layers.items() if (b := _bias(layer)) is not None}
        return dense | biases

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is trained, as a checkpoint holds it: adapters under PEFT's names, all else under its own.

        Of a sharded student this worker's rows; `load_state_dict` takes full tensors.
        """
        state = {name: p.detach() for name, p in self.parameters().items() if not _is_adapter(name)}
        if self.adapter.kind == "lora":
            state |= {name: t.contiguous() for name, t in get_peft_model_state_dict(self.model).items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned, in full tensors; collective where the student is sharded."""
        own = self.parameters()
        if self.adapter.kind == "lora":
            set_peft_model_state_dict(self.model, {name: t for name, t in state.items() if name not in own})
        for name in own.keys() & state.keys():
            assign(own[name], state[name])


def _replace_linears(
    model: PreTrainedModel, config: Config, grid: Grid, trainable: bool
) -> dict[str, QATLinear | QATLoraLinear]:
    """Replace every quantized linear layer in `model`; return the new ones by the name of the old."""
    linears = quantizable_layers(model, config.quant)
    adapted = _adapted_names(linears, config.adapter)
    grids = assign_grids(linears, grid)
    for name, linear in linears.items():
        if name not in adapted:
            full = trainable and config.adapter.kind == "none"
            _replace(model, name, QATLinear(linear, grids[name], trainable=full))
    if adapted:
        inject_adapter_in_model(make_lora_config(config.adapter, sorted(adapted)), model)
        _keep_adapters_in_float32(model)
    for name in adapted:
        layer = model.get_submodule(name)
        assert isinstance(layer, QATLoraLinear)
        layer.set_quantizer(
            grids[name],
            outside=config.adapter.placement == "outside",
            stops_saturated=config.adapter.saturated == "stop",
        )
    layers = {name: model.get_submodule(name) for name in linears}
    return cast("dict[str, QATLinear | QATLoraLinear]", layers)


def _keep_adapters_in_float32(model: nn.Module) -> None:
    """Undo PEFT's choice of the dtype of the weights beside them, where most steps of an optimizer round to nothing."""
    for name, parameter in model.named_parameters():
        if _is_adapter(name):
            parameter.data = parameter.data.float()


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _adapted_names(linears: dict[str, nn.Linear], adapter: AdapterConfig) -> set[str]:
    if adapter.kind == "none":
        return set()
    adapted = {name for name in linears if any(f".{name}".endswith(f".{target}") for target in adapter.targets)}
    if not adapted:
        kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
        raise ConfigError(f"adapter.targets={adapter.targets} names no quantized layer; the model has {kinds}")
    return adapted


def make_lora_config(adapter: AdapterConfig, targets: list[str]) -> LoraConfig:
    """Return PEFT's description of the adapter; no dropout, which a merged weight cannot have."""
    alpha = adapter.alpha if adapter.alpha is not None else 2 * adapter.rank
    config = LoraConfig(r=adapter.rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets)  # pyright: ignore
    config._register_custom_module({nn.Linear: QATLoraLinear})
    return config


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _bias(layer: QATLinear | QATLoraLinear) -> Tensor | None:
    return layer.bias if isinstance(layer, QATLinear) else layer.linear.bias
