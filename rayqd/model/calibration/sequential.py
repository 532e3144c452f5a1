"""Sequential calibration: each decoder layer is calibrated on the outputs of the quantized layers before it.

    tokens ─► embedding ─► layer 0 as it is: its linears' inputs ─► method ─► layer 0 quantized ─► layer 1 ...

Held are the hidden states between two layers, T·d of them, and one layer's input statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rayqd.config.sections import METHODS, QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.model.calibration.autoround import TOKENS_A_STEP, AutoRound
from rayqd.model.calibration.expert_statistics import ExpertStatistics, record_experts
from rayqd.model.calibration.layer_inputs import LayerInputs
from rayqd.model.calibration.methods import AWQ, GPTQ, Method
from rayqd.model.calibration.statistics import InputStatistics, collect_input_statistics
from rayqd.model.fused_experts import FusedExperts, quantizable_experts
from rayqd.model.rounded_head import with_rounded_head
from rayqd.model.token_limit import TokenLimit
from rayqd.quant import Grid, quantizable_layers
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.towers import text_tower
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_NAMES = 3  # of experts in a line

OnLayer = Callable[[int, int], None]  # decoder layers done, of how many


@torch.no_grad()
def calibrate(
    model: PreTrainedModel,
    quant: QuantConfig,
    grid: Grid,
    sequences: Sequence[IntArray],
    *,
    method: str = "gptq",
    max_batch_tokens: int,
    clips: bool = True,
    on_layer: OnLayer = lambda done, total: None,
    on_remark: Callable[[str], None] = lambda text: None,
) -> set[str]:
    """Change `model` so that rounding its quantizable linears with `grid` gives what `method` gives.

    gptq and autoround change only their weights, see `rayqd.quant.gptq` and `rayqd.model.calibration.autoround`; awq
    also norms and biases before them, see `rayqd.quant.awq`. `sequences` are token ids. They run at most
    `max_batch_tokens` at a time; a longer one runs alone. Linears outside the decoder layers, and layers and experts
    that no token reaches, keep their weights and so are rounded to nearest. Without `clips` AWQ moves scales alone,
    after which the model computes what it did before. `on_remark` is told of those experts, and of what AWQ cannot
    scale. Returns the names, in the model's state dict, of the tensors that have changed.

    Raises ConfigError when there are no sequences or the grid is none of `method`'s, ModelError when the model has no
    list of decoder layers, WorkerError when memory does not suffice for one sequence alone.
    """
    check_method(method, quant)
    if not any(len(ids) for ids in sequences):
        raise ConfigError(f"{METHODS[method]} needs at least one sequence to calibrate on, got none")
    layers = decoder_layers_of(model, method)
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    quantizable = quantizable_layers(model, quant)
    fused = quantizable_experts(model, quant)
    unseen: list[str] = []
    learns = method == "autoround"
    limit = TokenLimit(
        tokens=max_batch_tokens,
        setting="learner.microbatch_tokens",
        advice='lower data.max_length, or round to nearest (quant.init = "rtn")',
        tell=on_remark,
    )
    head = partial(with_rounded_head, model, quant, grid.dtype)
    group_tokens = TOKENS_A_STEP if learns else math.inf

    def embed() -> LayerInputs:
        return LayerInputs(model, layers, sequences, limit, head, group_tokens=group_tokens)

    inputs, targets = embed(), embed() if learns else None  # each with the keys and values that its own layers share
    num_unchanged = 0
    calibrate_layer = None if learns else _make_method(method, quant, grid, on_remark, clips)
    changed: set[str] = set()
    for i, layer in enumerate(layers):
        linears = {name: m for name, m in quantizable.items() if name.startswith(f"{names[layer]}.")}
        before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
        experts = [name for name in fused if name.startswith(f"{names[layer]}.")]
        weights = {f"{name}.weight": linear.weight for name, linear in linears.items()}
        weights |= {name: model.get_parameter(name) for name in experts}
        if calibrate_layer is None:
            assert targets is not None
            targets.advance(i)
            within = {name.removeprefix(f"{names[layer]}."): weight for name, weight in weights.items()}
            left = _make_autoround(quant, grid).change_layer(i, names[layer], within, inputs, targets)
            unseen += [f"{names[layer]}.{expert}" for expert in left]
        else:
            statistics, expert_statistics = inputs.collect(partial(_collect, model, layer, names, experts, inputs, i))
            calibrate_layer(layer, linears, statistics, lambda i=i: inputs.compute_change(i))
            for each in expert_statistics:
                calibrate_layer.change_experts(each)
                unseen += [f"{each.name}[{e}]" for e in each.without_tokens]
        after = layer.state_dict().items()
        now = {f"{names[layer]}.{name}" for name, tensor in after if not torch.equal(tensor, before[name])}
        num_unchanged += bool(weights) and not now
        changed |= now
        if i + 1 < len(layers):
            _advance_quantized(inputs, i, weights, grid)
        on_layer(i + 1, len(layers))
    if num_unchanged and learns:
        on_remark(f"{num_unchanged} of {len(layers)} layers stay rounded to nearest: AutoRound found nothing nearer")
    if unseen:
        on_remark(_describe_unseen(unseen, fused))
    return changed


def _collect(
    model: PreTrainedModel,
    layer: nn.Module,
    names: Mapping[nn.Module, str],
    experts: Sequence[str],
    inputs: LayerInputs,
    index: int,
) -> tuple[list[InputStatistics], list[ExpertStatistics]]:
    """Return the statistics of all that decoder layer `index` is made of."""
    with record_experts(model, experts) as of_experts:
        of_linears = collect_input_statistics(layer, names, partial(inputs.run, index))
    return of_linears, of_experts


def _describe_unseen(unseen: Sequence[str], fused: Mapping[str, FusedExperts]) -> str:
    """Format `3 of 256 matrices of experts saw no token and are rounded to nearest: model.layers.0...[7], ...`."""
    total = sum(experts.shape[0] for experts in fused.values())
    more = f" and {len(unseen) - MOST_NAMES} more" if len(unseen) > MOST_NAMES else ""
    names = ", ".join(unseen[:MOST_NAMES]) + more
    return f"{len(unseen)} of {total} weights of experts saw no calibration token and are rounded to nearest: {names}"


def check_method(method: str, quant: QuantConfig) -> None:
    """Raise ConfigError when `method` cannot round to the format."""
    if method in ("gptq", "autoround") and quant.format != "int4":
        raise ConfigError(f"{METHODS[method]} needs quant.format=int4, got {quant.format}; use awq or rtn")


def _make_autoround(quant: QuantConfig, grid: Grid) -> AutoRound:
    assert isinstance(grid, Int4Grid)
    return AutoRound(grid, quant.rounding_steps)


def _make_method(method: str, quant: QuantConfig, grid: Grid, on_remark: Callable[[str], None], clips: bool) -> Method:
    if method == "awq":
        return AWQ(grid, clip=clips, on_remark=on_remark)
    assert isinstance(grid, Int4Grid)
    return GPTQ(grid, act_order=quant.act_order, damping=quant.damping)


def _advance_quantized(inputs: LayerInputs, index: int, weights: Mapping[str, Tensor], grid: Grid) -> None:
    """Advance through the layer with its quantized weights, and give it back those that it had."""
    continuous = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        rows = weight.reshape(-1, weight.shape[-1])
        weight.copy_(grid.dequantize(grid.quantize(rows, name=name)).reshape(weight.shape))
    inputs.advance(index)
    for name, weight in weights.items():
        weight.copy_(continuous[name])


def decoder_layers_of(model: PreTrainedModel, method: str) -> nn.ModuleList:
    """Return the decoder layers that `method` goes through; raise ModelError where they are not found."""
    tower = text_tower(model)
    layers = getattr(tower, "layers", None)
    if isinstance(layers, nn.ModuleList):
        return layers
    lists = [module for module in tower.modules() if isinstance(module, nn.ModuleList) and _is_of_layers(module)]
    if len(lists) != 1:
        raise ModelError(
            f"{METHODS[method]} does not find the decoder layers of {type(model).__name__}; round to nearest instead"
        )
    return lists[0]


def _is_of_layers(modules: nn.ModuleList) -> bool:
    """Return whether these are layers that transformers checkpoints one by one."""
    return len(modules) > 0 and all(isinstance(module, GradientCheckpointingLayer) for module in modules)
