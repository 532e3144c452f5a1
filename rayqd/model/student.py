"""The student: the original model whose linear layers compute with 4-bit weights that are being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rayqd.config import Config
from rayqd.losses.output_head import Head
from rayqd.model.adapters import adapter_state, is_adapter, load_adapter_state
from rayqd.model.decoder_layers import checkpoint_layers, uncompile_layers
from rayqd.model.fused_experts import quantizable_experts
from rayqd.model.load import load_model, output_head, torch_dtype
from rayqd.model.out_of_memory import is_out_of_memory, release_memory
from rayqd.model.qat import QATLinear
from rayqd.model.qat_experts import QATExperts, restore_experts
from rayqd.model.replace import replace_layers, replace_module
from rayqd.model.rounded_head import round_head
from rayqd.model.sharding import assign, full_tensor, shard
from rayqd.model.weight_bits import count_weight_bits
from rayqd.quant import Grid, Quantized, make_grid
from rayqd.quant.routers import find_routers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rayqd.model.qat_lora import QATLoraLinear
    from rayqd.model.replace import QATLayer


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
        self.weight_bits = count_weight_bits(model, config)  # of the model that will be exported
        self.rounded_head = round_head(model, config.quant, self.grid.dtype)
        self.routers = tuple(find_routers(model))  # by name; none where no token chooses experts
        self._experts = quantizable_experts(model, config.quant)
        self.layers = replace_layers(model, self._experts, config, self.grid, trainable and mesh is None)
        self.model = model
        self._shards = shard(model, self.layers, mesh) if mesh is not None else None
        if config.learner.gradient_checkpointing:
            checkpoint_layers(model)
        # As sharded or made here: the model has others in their place while it computes, or answers benchmarks.
        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._trained = own if self._shards is None else self._shards

    @classmethod
    def load(cls, directory: Path, config: Config) -> Student:
        """Load the checkpoint in `directory` as an untrained student."""
        return cls(load_model(directory, config.model.dtype), config)

    @property
    def head(self) -> Head:
        """Return the output head, [V, d], with the values of its codes where it has any; not trained."""
        return output_head(self.model)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name, at any time; of a sharded student this worker's rows, as DTensors."""
        return dict(self._trained)

    def quantized_layers(self, gather: Callable[[Tensor], Tensor] = full_tensor) -> Iterator[tuple[str, Quantized]]:
        """Yield name in the original model, codes and scales of every quantized layer; exactly what forward uses.

        Each matrix of each expert is a layer, by its name in the model's files. Collective; `gather` returns the full
        tensor of a sharded weight.
        """
        for name, layer in self.layers.items():
            if self._shards is None:
                quantized = layer.quantize(name)
            else:
                weight = gather(self._shards[f"{name}.weight"].detach()).to(self.head.device)
                quantized = layer.grid.quantize(weight.reshape(-1, weight.shape[-1]), name=name)
            if name in self._experts:
                yield from self._experts[name].split(quantized)
            else:
                yield name, quantized

    def exported_layers(self) -> Iterator[tuple[str, Quantized]]:
        """Yield what `quantized_layers` does, and an output head whose codes every format stores; collective."""
        yield from self.quantized_layers()
        if self.rounded_head is not None and not self.rounded_head.is_tied:
            yield self.rounded_head.layer, self.rounded_head.codes

    @contextmanager
    def as_exported(self) -> Iterator[None]:
        """Let the model compute with the weights of the export, as it always does unless adapters are outside."""
        outside = [layer for layer in self.layers.values() if not isinstance(layer, QATLinear) and layer.outside]
        for layer in outside:
            layer.outside = False
        try:
            yield
        finally:
            for layer in outside:
                layer.outside = True

    @contextmanager
    def with_plain_layers(self) -> Iterator[bool]:
        """Let the model compute with the values of the codes, made once, for who runs it thousands of times.

        Experts, a sharded student, and one for whose values memory does not suffice, which yields False, go on rounding
        in every forward pass; what they compute is the same.
        """
        can_be = {} if self._shards is not None else self.layers
        replaced = {name: layer for name, layer in can_be.items() if not isinstance(layer, QATExperts)}
        fits = self._try_plain(replaced)
        try:
            yield fits
        finally:
            self._put_back(replaced)

    def _try_plain(self, layers: Mapping[str, QATLinear | QATLoraLinear]) -> bool:
        """Replace `layers` by their values; none of them where memory does not suffice, and return whether it did."""
        try:
            for name, layer in layers.items():
                replace_module(self.model, name, _plain_linear(layer, name))
        except RuntimeError as error:  # torch's are
            self._put_back(layers)
            if not is_out_of_memory(error):
                raise
        else:
            return True
        release_memory()  # which the error's traceback no longer holds
        return False

    def _put_back(self, layers: Mapping[str, nn.Module]) -> None:
        for name, layer in layers.items():
            replace_module(self.model, name, layer)

    def to_plain_model(self) -> PreTrainedModel:
        """Turn the student into the model of the export: plain linear layers with the values of the codes."""
        uncompile_layers(self.model)
        for name, layer in self.layers.items():
            if isinstance(layer, QATExperts):
                weight = layer.grid.dequantize(layer.quantize(name))
                parent, _, leaf = name.rpartition(".")
                restore_experts(self.model.get_submodule(parent), {leaf: weight.reshape(layer.weight.shape)})
            else:
                replace_module(self.model, name, _plain_linear(layer, name))
        self.layers, self._trained = {}, {}
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
        parameters = self.parameters()
        return {n: p.detach() for n, p in parameters.items() if not is_adapter(n)} | adapter_state(parameters)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned, in full tensors; collective where the student is sharded."""
        own = self.parameters()
        load_adapter_state(own, state)
        for name in own.keys() & state.keys():
            assign(own[name], state[name])


def _plain_linear(layer: QATLinear | QATLoraLinear, name: str) -> nn.Linear:
    """Return a linear layer with the values that `layer`, called `name`, rounds to."""
    weight = layer.grid.dequantize(layer.quantize(name))
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = _bias(layer)  # pyright: ignore[reportAttributeAccessIssue]
    return plain


def _bias(layer: QATLayer) -> Tensor | None:
    if isinstance(layer, QATExperts):
        return None  # a parameter beside it
    return layer.bias if isinstance(layer, QATLinear) else layer.linear.bias
