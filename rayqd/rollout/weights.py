"""In which form an engine holds the student: its codes, or the values that they stand for.

vLLM has kernels for int4 on every machine. It has none for bitsandbytes' formats, and none for nvfp4 on CPUs or older
GPUs; there, and where int4's groups or dtype are none of its kernels', it runs the dense model on exactly the values of
the learner's forward pass. Codes and scales are what travels in either case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.export.initial import initial_checkpoint
from rayqd.model.load import torch_dtype
from rayqd.model.wire import from_wire
from rayqd.quant import Grid, make_grid
from rayqd.quant.packing import unpack
from rayqd.types import WireTensor

VLLM_GROUP_SIZES = (32, 64, 128)
_VLLM_DTYPES = ("bfloat16", "float16")


class Form(Protocol):
    def checkpoint(self, source: Path, config: Config) -> Path:
        """The directory that the engine starts from; `source` is the model that was given."""
        ...

    def tensors(self, published: Mapping[str, WireTensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """What was published, as the engine takes it, one tensor at a time and on `device`."""
        ...


def form_for(config: Config) -> Form:
    """The form in which every machine's vLLM runs the student that `config` describes."""
    if why_no_int4_kernel(config):
        return Dense(make_grid(config.quant, torch_dtype(config.model.dtype)))
    return Packed()


def why_no_int4_kernel(config: Config) -> str:
    """Why vLLM cannot compute with the codes themselves; empty when it can."""
    if config.quant.format != "int4":
        return f"{config.quant.format} is not int4"
    if config.quant.group_size not in VLLM_GROUP_SIZES:
        return f"vLLM has no kernel for groups of {config.quant.group_size}"
    if config.model.dtype not in _VLLM_DTYPES:
        return f"vLLM has no 4-bit kernel for {config.model.dtype}"
    return ""


@dataclass(frozen=True, slots=True)
class Packed:
    """Codes and scales, for vLLM's 4-bit kernels."""

    def checkpoint(self, source: Path, config: Config) -> Path:
        return initial_checkpoint(source, config)

    def tensors(self, published: Mapping[str, WireTensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for name, wire in published.items():
            yield name, from_wire(wire).to(device)


@dataclass(frozen=True, slots=True)
class Dense:
    """The values of the codes, for an engine that runs the model as it was given."""

    grid: Grid

    def checkpoint(self, source: Path, config: Config) -> Path:
        del config  # the first weights are replaced before anything is written with them
        return source

    def tensors(self, published: Mapping[str, WireTensor], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        for layer, parts in _by_layer(published).items():
            tensors = {part: from_wire(wire).to(device) for part, wire in parts.items()}
            packed = {part: tensors.pop(part) for part in parts if part.startswith("weight_")}
            if packed:
                yield f"{layer}.weight", self.grid.dequantize(unpack(packed))
            yield from ((f"{layer}.{part}", tensor) for part, tensor in tensors.items())


def _by_layer(published: Mapping[str, WireTensor]) -> dict[str, dict[str, WireTensor]]:
    layers: dict[str, dict[str, WireTensor]] = {}
    for name, wire in published.items():
        layer, _, part = name.rpartition(".")
        layers.setdefault(layer, {})[part] = wire
    return layers
