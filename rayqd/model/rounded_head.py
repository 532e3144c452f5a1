"""The output head, and the embedding where the two are one matrix, on the grid of `quant.head`.

Rounded once, before anything is calibrated or trained, and frozen: the body learns to make up for it. The teacher keeps
the head of its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.quant.grid import Quantized
from rayqd.quant.head import HeadGrid, make_head_grid
from rayqd.quant.select import USUAL_GROUP_SIZES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadModules:
    """Where a model has its output head."""

    head: str  # qualified name of the module
    embedding: str | None  # that of the embedding whose weight it shares; None where they are two matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedHead:
    """Codes of an output head [V, d], on the CPU, and the modules that compute with their values."""

    modules: HeadModules
    codes: Quantized
    aliases: tuple[str, ...] = ()  # the modules as transformers calls them, where `modules` has the names of files

    @property
    def is_tied(self) -> bool:
        """Return whether the embedding is the same matrix."""
        return self.modules.embedding is not None

    @property
    def layer(self) -> str:
        """Return the module whose weight in the files is the matrix: of a tied one the embedding."""
        return self.modules.embedding or self.modules.head


def find_head(model: PreTrainedModel) -> HeadModules | None:
    """Return where `model`, which may be on the meta device, has its output head; None where it is no nn.Linear."""
    head = cast("nn.Module | None", model.get_output_embeddings())  # pyright: ignore[reportUnknownMemberType]
    if not isinstance(head, nn.Linear):
        return None
    tied = cast("Mapping[str, str] | None", getattr(model, "all_tied_weights_keys", None)) or {}
    names = {module: name for name, module in cast("Iterable[tuple[str, nn.Module]]", model.named_modules())}
    embeddings = {names[module]: module for module in names if isinstance(module, nn.Embedding)}
    sharing = [
        name
        for name, embedding in embeddings.items()
        if embedding.weight is head.weight or tied.get(f"{names[head]}.weight") == f"{name}.weight"
    ]
    return HeadModules(head=names[head], embedding=sharing[0] if sharing else None)


def check_head(model: PreTrainedModel, quant: QuantConfig) -> None:
    """Raise ConfigError where `quant.head` does not fit `model`, which may be on the meta device."""
    if quant.head == "none":
        return
    found = find_head(model)
    if found is None:
        raise ConfigError(
            f"quant.head={quant.head}: the output head of {type(model).__name__} is no nn.Linear, and no reader of "
            "4-bit files loads another; leave quant.head out"
        )
    width = cast(nn.Linear, model.get_submodule(found.head)).in_features
    if width % quant.group_size:
        fitting = [str(size) for size in USUAL_GROUP_SIZES if width % size == 0]
        remedy = f"use {' or '.join(fitting)}, or " if fitting else ""
        raise ConfigError(
            f"quant.head={quant.head}: quant.group_size={quant.group_size} does not divide the output head's {width} "
            f"input features; {remedy}leave quant.head out"
        )


def describe_head(model: PreTrainedModel, quant: QuantConfig) -> str:
    """Return what readers make of the head of `quant.head`, in a line; empty where all of them take it."""
    found = find_head(model)
    if quant.head == "none" or found is None:
        return ""
    if found.embedding is not None:
        return (
            f"quant.head={quant.head}: head and embedding are one matrix, whose codes GGUF and MLX store; transformers "
            "loads no embedding of codes, so in the other formats it is the codes' values in the model's dtype"
        )
    return "quant.head=int8: vLLM reads it on GPUs alone, AWQ has no place for it" if quant.head == "int8" else ""


@torch.no_grad()
def round_head(model: PreTrainedModel, quant: QuantConfig, dtype: torch.dtype) -> RoundedHead | None:
    """Replace the values of the head of `model`, and of an embedding tied to it, in place, by those of their codes.

    Returns the codes; None where `quant.head` leaves the head dense. Raises what `check_head` does.
    """
    grid = make_head_grid(quant, dtype)
    if grid is None:
        return None
    check_head(model, quant)
    found = find_head(model)
    assert found is not None
    codes = _round(cast(nn.Linear, model.get_submodule(found.head)), grid, found.head)
    if found.embedding is not None:
        embedding = cast(nn.Embedding, model.get_submodule(found.embedding))
        embedding.weight.copy_(
            cast(nn.Linear, model.get_submodule(found.head)).weight
        )  # itself, or another of its value
    return RoundedHead(modules=found, codes=codes)


@contextmanager
def with_rounded_head(model: PreTrainedModel, quant: QuantConfig, dtype: torch.dtype) -> Iterator[None]:
    """Let `model` embed with the values that the student embeds with, and give it back those that it had."""
    found = find_head(model)
    if quant.head == "none" or found is None or found.embedding is None:
        yield  # the head alone changes nothing before the last layer
        return
    weight = cast(nn.Embedding, model.get_submodule(found.embedding)).weight
    before: Tensor = weight.detach().clone()
    round_head(model, quant, dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)
            cast(nn.Linear, model.get_submodule(found.head)).weight.copy_(before)


def _round(head: nn.Linear, grid: HeadGrid, name: str) -> Quantized:
    codes = grid.quantize(head.weight, name=name)
    head.weight.copy_(grid.dequantize(codes))
    return Quantized(codes.codes.cpu(), codes.scales.cpu(), bits=codes.bits)
