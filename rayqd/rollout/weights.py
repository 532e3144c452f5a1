"""How an engine takes the student's weights: as packed codes, or as the values that the codes stand for.

vLLM has kernels for int4 on GPUs, and on CPUs with AVX-512. It has none for bitsandbytes' formats, and none for nvfp4
on CPUs or older GPUs; there, and where int4's groups or dtype are none of its kernels', it runs the dense model on
exactly the values of the learner's forward pass. Codes and scales are what travels in either case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.export.initial_checkpoint import make_initial_checkpoint
from rayqd.export.rounded_checkpoint import make_rounded_checkpoint
from rayqd.model.load import torch_dtype
from rayqd.model.wire import from_wire
from rayqd.quant import Grid, make_grid, unpack
from rayqd.rollout.kernels import WeightForm, explain_missing_int4_kernel
from rayqd.types import WireTensor


class WeightLoader(Protocol):
    """What an engine starts from, and how it takes each version of the weights."""

    def prepare_checkpoint(self, source: Path, config: Config) -> Path:
        """Return the directory that the engine starts from; `source` is the 16-bit model's."""
        ...

    def convert(self, published: Mapping[str, WireTensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Yield what was published as the engine takes it, by name, one tensor at a time and on `device`."""
        ...


def choose_weight_loader(config: Config, form: WeightForm | None = None) -> WeightLoader:
    """Return the loader with which vLLM runs the student that `config` describes.

    `form`: what the engine's machine has kernels for; without it, what some machine has.
    """
    if explain_missing_int4_kernel(config) or (form and form.is_dense):
        return DenseLoader(make_grid(config.quant, torch_dtype(config.model.dtype)))
    return PackedLoader()


@dataclass(frozen=True, slots=True)
class PackedLoader:
    """Hands over codes and scales as they are, for vLLM's 4-bit kernels."""

    def prepare_checkpoint(self, source: Path, config: Config) -> Path:
        """Return an int4 checkpoint of `source`, rounded to nearest."""
        return make_initial_checkpoint(source, config)

    def convert(self, published: Mapping[str, WireTensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor under the name that it was published by."""
        for name, wire in published.items():
            yield name, from_wire(wire).to(device)


@dataclass(frozen=True, slots=True)
class DenseLoader:
    """Dequantizes, for an engine that runs the model as a 16-bit or float32 one."""

    grid: Grid

    def prepare_checkpoint(self, source: Path, config: Config) -> Path:
        """Return `source`, or a copy with the rounded head; all else is replaced before anything is written with it."""
        return make_rounded_checkpoint(source, config)

    def convert(self, published: Mapping[str, WireTensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Yield the values [out, in] of each quantized layer, the learner's to the bit, and the rest as it is."""
        for layer, parts in _group_by_layer(published).items():
            tensors = {part: from_wire(wire).to(device) for part, wire in parts.items()}
            packed = {part: tensors.pop(part) for part in parts if part.startswith("weight_")}
            if packed:
                yield f"{layer}.weight", self.grid.dequantize(unpack(packed))
            yield from ((f"{layer}.{part}", tensor) for part, tensor in tensors.items())


def _group_by_layer(published: Mapping[str, WireTensor]) -> dict[str, dict[str, WireTensor]]:
    """Split `model.layers.0.mlp.up_proj.weight_scale` into the layer's name and the last part."""
    layers: dict[str, dict[str, WireTensor]] = {}
    for name, wire in published.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, {})[part] = wire
    return layers
