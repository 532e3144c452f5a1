"""How much of a GPU each role needs, from the model's shapes: so that roles that share one divide it by need.

The learner and the teacher take what they need; the engine, which can live with few keys and values, gets the rest.
The factors are those of the measurements in docs/performance.md, with a tenth to spare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayqd.config import Config
from rayqd.errors import PlacementError
from rayqd.model.calibration.autoround import BYTES_A_WEIGHT, TOKENS_A_STEP
from rayqd.model.fused_experts import quantizable_experts
from rayqd.model.load import output_head, torch_dtype
from rayqd.quant import make_grid, quantizable_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GIB = 2**30
_PROCESS = int(0.75 * _GIB)  # CUDA's context, its libraries' workspaces
_LOSS = int(1.5 * _GIB)  # logits of a chunk of both models, and what is computed with them
_KERNELS = int(0.5 * _GIB)  # CUDA graphs, workspaces of an engine's kernels
USABLE = 0.96  # of the card; the rest is lost between blocks
_ACTIVATIONS = 1.2  # to what a layer's products read and write: norms, rotary embedding, gate
_TRAINED_BYTES = 16  # float32, with its gradient and AdamW's two moments
_ENGINE_TOKENS = 8192  # that vLLM computes at a time, unless it is told otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What of a model decides the memory it takes."""

    num_parameters: int  # a tied head counts once
    num_quantized: int  # those in layers that are quantized
    width: int  # of the hidden states
    vocab_size: int
    num_layers: int
    product_width: int  # inputs and outputs of all quantized layers together, a token
    adapted_width: int  # the same with every expert, where a token passes but a few
    largest_experts: int  # weights of all experts of a layer, which are rounded at once
    widest_input: int  # of a quantized layer


def measure_size(model: PreTrainedModel, config: Config) -> ModelSize:
    """Return the size of `model`, which may be on the meta device."""
    linears = quantizable_layers(model, config.quant).values()
    experts = [each.shape for each in quantizable_experts(model, config.quant).values()]
    width_of_linears = sum(linear.in_features + linear.out_features for linear in linears)
    active = _active_experts(model)
    vocab_size, width = output_head(model).shape
    return ModelSize(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_quantized=sum(linear.weight.numel() for linear in linears) + sum(e * n * k for e, n, k in experts),
        width=width,
        vocab_size=vocab_size,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        product_width=width_of_linears + sum(min(active, e) * (n + k) for e, n, k in experts),
        adapted_width=width_of_linears + sum(e * (n + k) for e, n, k in experts),
        largest_experts=max((e * n * k for e, n, k in experts), default=0),
        widest_input=max(linear.in_features for linear in linears),
    )


def _active_experts(model: PreTrainedModel) -> int:
    """Return how many experts a token passes; one where the configuration does not say."""
    config = model.config.get_text_config()
    names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k")
    return next((int(k) for name in names if isinstance(k := getattr(config, name, None), int)), 1)


def learner_bytes(size: ModelSize, config: Config, teachers: Sequence[ModelSize] = ()) -> int:
    """Return what a learner worker needs; `teachers`: the sizes of all, where they are not the student's."""
    value = torch_dtype(config.model.dtype).itemsize
    shares_head = config.quant.head == "none"
    sizes = zip(config.teachers, teachers or [size] * len(config.teachers), strict=True)
    heads = sum(own.width * own.vocab_size for each, own in sizes if not (each.is_student and shares_head)) * value
    return int(
        _PROCESS
        + _student_bytes(size, config)
        + heads
        + max(_training_bytes(size, config), _calibration_bytes(size, config))
    )


def teacher_bytes(size: ModelSize, config: Config) -> int:
    """Return what a teacher needs on each of its GPUs."""
    value = torch_dtype(config.model.dtype).itemsize
    layer = _ACTIVATIONS * value * size.product_width / size.num_layers
    logits = 0 if config.teacher.payload == "hidden" else _LOSS
    tokens = min(config.teacher.max_batch_tokens, _most_tokens(config, config.teacher.num_workers))
    weights = size.num_parameters * value / config.teacher.gpus_per_worker
    return int(_PROCESS + weights + tokens * (layer + 4 * value * size.width) + logits)


def teacher_weight_bytes(total_bytes: int, gpu_share: float, size: ModelSize, config: Config) -> int:
    """Return the bytes of weights for which a GPU of `total_bytes` has room beside all else that a teacher needs."""
    weights = size.num_parameters * torch_dtype(config.model.dtype).itemsize / config.teacher.gpus_per_worker
    beside = teacher_bytes(size, config) - weights
    return max(0, int(USABLE * total_bytes * min(gpu_share, 1.0) - beside))


def engine_bytes(size: ModelSize, config: Config, num_sequences: int, *, is_dense: bool) -> int:
    """Return what an engine needs on each of its GPUs beside its keys and values.

    `is_dense` of one that holds no codes but values.
    """
    parts = config.rollout.tensor_parallel
    value = torch_dtype(config.model.dtype).itemsize
    bits = make_grid(config.quant, torch_dtype(config.model.dtype)).bits_per_weight
    quantized = value if is_dense else bits / 8
    weights = (size.num_parameters - size.num_quantized) * value + size.num_quantized * quantized
    activations = _ENGINE_TOKENS * value * (size.product_width / size.num_layers / parts + 4 * size.width)
    logits = num_sequences * size.vocab_size * 4 * 4  # float32: logits, what is sampled from, both sorted at most
    return int(_PROCESS + _KERNELS + weights / parts + activations + logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuShare:
    """What an engine gets of a GPU."""

    kv_bytes: int  # of keys and values
    utilization: float  # of the whole GPU, for all that it holds


def plan_engine(
    total_bytes: int, others: Mapping[str, int], engine: int, wanted_kv: int, least_kv: int, advice: str
) -> GpuShare:
    """Divide a GPU of `total_bytes`: `others` by role and the `engine` itself take theirs, keys and values the rest.

    Keys and values get `wanted_kv` where there is room, and never less than `least_kv`. Raises PlacementError with the
    numbers and `advice`, what to change, where that does not fit.
    """
    room = int(USABLE * total_bytes) - sum(others.values()) - engine
    if room < least_kv:
        needs = {**others, "rollout": engine + least_kv}
        raise PlacementError(describe_shortage(total_bytes, needs, advice))
    kv_bytes = min(wanted_kv, room)
    return GpuShare(kv_bytes=kv_bytes, utilization=round(min(0.95, (engine + kv_bytes) / total_bytes), 3))


def describe_shortage(total_bytes: int, needs: Mapping[str, int], advice: str) -> str:
    """Format `a GPU of 15.0 GiB is too small: learner needs 12.5 GiB, ..., together 30.1 GiB; ADVICE`."""
    roles = ", ".join(f"{role} needs {count / _GIB:.1f} GiB" for role, count in needs.items())
    together = f", together {sum(needs.values()) / _GIB:.1f} GiB" if len(needs) > 1 else ""
    return f"a GPU of {total_bytes / _GIB:.1f} GiB is too small: {roles}{together}; {advice}"


def advise(config: Config, roles: Sequence[str]) -> str:
    """Return what would make room for `roles` on a GPU, what costs least first."""
    changes = ["lower rollout.max_concurrent or data.max_length"]
    if "learner" in roles:
        changes.append(f"lower learner.microbatch_tokens={config.learner.microbatch_tokens}")
        if not config.learner.gradient_checkpointing:
            changes.append("set learner.gradient_checkpointing")
        if config.adapter.kind == "none":
            changes.append('train adapters (adapter.kind = "lora"), or shard over more learner.num_workers')
    if any(role.startswith("teacher") for role in roles):
        changes.append(f"lower teacher.max_batch_tokens={config.teacher.max_batch_tokens}")
        changes.append("spread it over several GPUs (teacher.gpus_per_worker)")
    if "rollout" in roles:
        changes.append("give the rollouts GPUs of their own (rollout.tensor_parallel)")
    changes.append("take a smaller model or more GPUs; rollout.gpu_memory_utilization, if given, is tried unchecked")
    return ", ".join(changes)


def _student_bytes(size: ModelSize, config: Config) -> float:
    """Return what the student takes of a learner worker, which of several has a share of what full QAT trains.

    That one is loaded whole and in 16 bits, and sharded layer by layer, of which one is whole in float32 at a time.
    """
    value, num_workers = torch_dtype(config.model.dtype).itemsize, config.learner.num_workers
    if config.adapter.kind != "none":
        return size.num_parameters * value + size.adapted_width * config.adapter.rank * _TRAINED_BYTES
    trained = (size.num_parameters - size.num_quantized) * value + size.num_quantized * _TRAINED_BYTES / num_workers
    if num_workers == 1:
        return trained
    layer = size.num_quantized / size.num_layers
    return max(size.num_parameters * value + layer * 4, trained + layer * 8)  # 8: with its gradient


def _training_bytes(size: ModelSize, config: Config) -> float:
    value = torch_dtype(config.model.dtype).itemsize
    tokens = min(config.learner.microbatch_tokens, _most_tokens(config, config.learner.num_workers))
    products = _ACTIVATIONS * value * size.product_width
    if config.learner.gradient_checkpointing:
        kept = value * size.width * size.num_layers + products / size.num_layers
    else:
        kept = products
    rounding = size.largest_experts * (4 + 2 * value)  # merged in float32, rounded, and their gradient
    return tokens * (kept + 6 * value * size.width) + _LOSS + rounding


def _most_tokens(config: Config, num_workers: int) -> int:
    """Return the tokens of a worker's share of a step, or of the held-out rows, if all are as long as can be."""
    length = config.data.max_length + (config.rollout.max_new_tokens if config.is_on_policy else 0)
    return math.ceil(max(config.learner.batch_size / num_workers, config.eval.num_rows)) * length


def _calibration_bytes(size: ModelSize, config: Config) -> float:
    """Return what calibration takes.

    GPTQ: some second moments of the widest layer's inputs, and the hidden states of its data; AutoRound: those of the
    original model too, and what learning the rounding of one layer keeps.
    """
    if config.quant.init == "rtn":
        return 0
    states = 4 * size.width * config.quant.calibration_tokens
    if config.quant.init == "autoround":
        tokens = min(TOKENS_A_STEP, config.learner.microbatch_tokens)
        activations = tokens * _ACTIVATIONS * torch_dtype(config.model.dtype).itemsize * size.product_width
        return 2 * states + (BYTES_A_WEIGHT * size.num_quantized + activations) / size.num_layers
    return 4 * 4 * size.widest_input**2 + 2 * states + size.num_quantized / size.num_layers * 8
