"""Decoder layers compiled by torch.compile, and with gradient checkpointing.

Compiled, all that they compute between products and attention is a few kernels. Left to themselves norms, rotary
embedding, gate and residuals take a third of a training step: some forty kernels a layer, each of which reads and
writes all activations. The layers differ in their weights alone, so that one is compiled and serves all. What
transformers rounds to 16 bits on the way is rounded here too; sums may be added in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._inductor import config as inductor
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OPTIONS: dict[str, bool] = {"emulate_precision_casts": True}
# Versions of a layer: of student and teacher, with gradients of its input, without (the first layer), without any.
_MOST_VERSIONS = 64
# Processes that compile a layer's dozen kernels; torch would start one for each core, in every role of the run.
_COMPILER_PROCESSES = 4


def compile_layers(model: nn.Module) -> None:
    """Have torch.compile compile each decoder layer of `model` when it is first called."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_VERSIONS)
    inductor.compile_threads = min(inductor.compile_threads or _COMPILER_PROCESSES, _COMPILER_PROCESSES)
    for layer in decoder_layers(model):
        vars(layer)["forward"] = torch.compile(layer.forward, dynamic=True, options={**_OPTIONS})


def uncompile_layers(model: nn.Module) -> None:
    """Undo `compile_layers`, if it was done."""
    for layer in decoder_layers(model):
        vars(layer).pop("forward", None)


@contextmanager
def eager_layers(model: nn.Module) -> Iterator[None]:
    """Let compiled layers run as they are meanwhile: compiled code calls no hooks of what is in them."""
    compiled = {layer: forward for layer in decoder_layers(model) if (forward := vars(layer).get("forward"))}
    uncompile_layers(model)
    try:
        yield
    finally:
        for layer, forward in compiled.items():
            vars(layer)["forward"] = forward


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Keep each decoder layer's input alone, and compute the layer once more in the backward pass."""
    # Nothing in a layer is random: all but the layers themselves stays in evaluation mode, without dropout.
    model.gradient_checkpointing_enable(
        {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    )
    for layer in decoder_layers(model):
        layer.training = True


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that transformers checkpoints one by one, in the model's order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
