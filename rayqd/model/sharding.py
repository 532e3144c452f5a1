"""Full QAT over several workers: each holds some rows of every trained weight, of its gradient and its moments (FSDP2).

    forward    all-gather layer i, compute, free ─► all-gather layer i + 1 ...
    backward   all-gather layer i, compute, free; reduce-scatter its gradient ─► layer i - 1 ...

A decoder layer is gathered whole and in float32, so whole groups of the very same numbers are rounded as on one worker.
What is not trained stays whole on every worker: norms, the embedding, and the output head, which the loss needs where
no layer is being computed. Whatever gathers is done by all workers at the same time and in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.model.read_weight import is_weight_read
from rayqd.quant.towers import text_tower

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def shard(model: PreTrainedModel, layers: Mapping[str, nn.Module], mesh: DeviceMesh) -> dict[str, nn.Parameter]:
    """Make the weights of `layers` trainable in float32, each worker keeping its rows of them; returns those by name.

    Never more than one decoder layer is whole in float32. Raises ConfigError for a layer outside the decoder.
    """
    decoder = text_tower(model)
    weights = {f"{name}.weight": layer for name, layer in layers.items()}
    within = {module for module in decoder.modules() if module is not decoder}
    if outside := [name for name, layer in layers.items() if layer not in within]:
        raise ConfigError(
            f"adapter.kind=none leaves {outside[0]} to be trained, which is outside the decoder and cannot be "
            "sharded over learner workers: add it to quant.ignore, or set learner.num_workers=1"
        )
    blocks = getattr(decoder, "layers", ())
    for unit in (*blocks, decoder):
        own = set(unit.modules())
        for layer in weights.values():
            weight = dict(layer.named_parameters(recurse=False))["weight"]  # itself, where `.weight` is the rounded one
            if layer in own and not weight.requires_grad:
                layer.weight = nn.Parameter(weight.detach().float())
        unit_fsdp = fully_shard(unit, mesh=mesh, ignored_params={p for p in unit.parameters() if not p.requires_grad})
        unit_fsdp.set_gradient_divide_factor(1.0)  # gradients are added up: the loss has the global denominator already
        unit_fsdp.set_force_sum_reduction_for_comms(True)  # gloo knows no other way of dividing by one
    trained = dict(model.named_parameters())
    return {name: trained[name] for name in weights}


def is_sharded(model: nn.Module) -> bool:
    """Return whether some of the weights of `model` lie on other workers, who then join each of its calls."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_can_be_sharded(model: nn.Module, names: Iterable[str], config: Config) -> None:
    """Check that none of the layers to train is one whose weight the module around it reads, past what gathers it.

    Raises ConfigError. `model` may be on the meta device.
    """
    if config.adapter.kind != "none" or config.learner.num_workers == 1:
        return
    for name in names:
        parent, _, leaf = name.rpartition(".")
        if is_weight_read(reader := model.get_submodule(parent), leaf):
            raise ConfigError(
                f"adapter.kind=none cannot be sharded over learner.num_workers={config.learner.num_workers}: "
                f"{type(reader).__name__} reads the weight of {name} itself; add it to quant.ignore, or use adapters"
            )


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather the rows of a sharded tensor, all workers at the same time; return any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_tensor_over(mesh: DeviceMesh, tensor: Tensor) -> Tensor:
    """Gather `tensor` on the CPU over `mesh`, a mesh of CPUs that no other thread uses."""
    if not isinstance(tensor, DTensor):
        return tensor
    rows = tensor.to_local().detach().cpu()
    return DTensor.from_local(
        rows, mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    ).full_tensor()


def shard_like(parameter: Tensor, value: Tensor) -> Tensor:
    """Move `value`, full on every worker, to the device of `parameter`, and shard it if that is sharded."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def assign(parameter: nn.Parameter, value: Tensor) -> None:
    """Copy `value`, full on every worker, into `parameter`."""
    parameter.copy_(shard_like(parameter, value))
