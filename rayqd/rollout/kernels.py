"""Which of vLLM's kernels computes the student's layers: asked of vLLM itself, before any weights are loaded.

A layer without one has the engine run the dense model instead; that is never found out in the first request.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import nn

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.model.fused_experts import quantizable_experts
from rayqd.model.grids import fused_layer_names
from rayqd.model.load import load_meta_model, torch_dtype
from rayqd.quant import quantizable_layers
from rayqd.rollout.parallel import Side, divided_sides

if TYPE_CHECKING:
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig

VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process, where its weights can be reached
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # roles share the cores
    "VLLM_CPU_INT4_W4A8": "0",  # 16-bit activations, as the learner computes them
    "VLLM_LOGGING_LEVEL": "WARNING",
}

_GROUP_SIZES = (32, 64, 128)
_DTYPES = ("bfloat16", "float16")
_CPU_KERNEL = "CPUWNA16LinearKernel"
_CPU_OPERATOR = "cpu_gemm_wna16"


class LayerShape(NamedTuple):
    """A matrix as an engine multiplies with it, layers that read the same input in one."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightForm:
    """How an engine holds the student's quantized layers: as codes, or as the values that they stand for."""

    kernels: tuple[str, ...] = ()  # vLLM's names of those that multiply with codes; none where the layers are dense
    reason: str = ""  # why they are dense
    dtype: str  # of dense values, and of activations in either case

    @property
    def is_dense(self) -> bool:
        """Return whether the engine computes with dequantized weights."""
        return bool(self.reason)

    def __str__(self) -> str:
        if self.is_dense:
            return f"dense {self.dtype} weights, as {self.reason}"
        return f"4-bit weights in {' and '.join(self.kernels)}" if self.kernels else "4-bit weights"


def explain_missing_int4_kernel(config: Config) -> str:
    """Return why no machine's vLLM computes with the codes themselves; empty where some do."""
    if config.quant.format != "int4":
        return f"{config.quant.format} is not int4"
    if config.quant.group_size not in _GROUP_SIZES:
        return f"vLLM has no kernel for groups of {config.quant.group_size}"
    if config.model.dtype not in _DTYPES:
        return f"vLLM has no 4-bit kernel for {config.model.dtype}"
    return ""


def choose_weight_form(source: Path, config: Config, *, experts_as_codes: bool = False) -> WeightForm:
    """Ask the vLLM of this process for a kernel for every quantized layer of the model in `source`.

    `experts_as_codes`: experts are in the checkpoint as they are exported, of which vLLM is left to say what it thinks.
    Reads the model's configuration, and no weights. Raises ConfigError where vLLM itself cannot work.
    """
    dtype = config.model.dtype
    if reason := explain_missing_int4_kernel(config):
        return WeightForm(reason=reason, dtype=dtype)
    model = load_meta_model(source)
    if reason := explain_split_fusion(model, config.quant):
        return WeightForm(reason=reason, dtype=dtype)
    if quantizable_experts(model, config.quant) and not experts_as_codes:
        return WeightForm(reason="experts are handed over as the values of their codes", dtype=dtype)
    names: dict[str, None] = {}
    for whole, layer in find_layer_shapes(model, config.quant).items():
        for shape in _divide(whole, divided_sides(model, layer.partition(" + ")[0]), config.rollout.tensor_parallel):
            kernel, reason = choose_kernel(shape, config, whole)
            if reason:
                return WeightForm(reason=f"{layer} [{shape.in_features}, {shape.out_features}]: {reason}", dtype=dtype)
            names[kernel] = None
    if _CPU_KERNEL in names and (reason := explain_missing_cpu_kernel()):
        return WeightForm(reason=reason, dtype=dtype)
    return WeightForm(kernels=tuple(names), dtype=dtype)


def find_layer_shapes(model: nn.Module, quant: QuantConfig) -> dict[LayerShape, str]:
    """Return every shape that a quantized layer has in an engine, fused ones as one, with the first of its names."""
    shapes: dict[LayerShape, str] = {}
    linears = quantizable_layers(model, quant)
    for name, linear in linears.items():
        parts = [part for part in fused_layer_names(name) if part in linears]
        if name == parts[0]:
            together = LayerShape(linear.in_features, sum(linears[part].out_features for part in parts))
            shapes.setdefault(together, " + ".join([name, *(part.rpartition(".")[2] for part in parts[1:])]))
    return shapes


def count_packed_weights(source: Path, config: Config) -> int:
    """Return how many of its weights the model in `source` has in layers that an engine gets as codes."""
    return sum(linear.weight.numel() for linear in quantizable_layers(load_meta_model(source), config.quant).values())


def explain_split_fusion(model: nn.Module, quant: QuantConfig) -> str:
    """Return why vLLM cannot fuse layers of which `quant.ignore` leaves only some dense; empty where there are none."""
    linears = quantizable_layers(model, quant)
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    present = {name for name, module in modules if isinstance(module, nn.Linear)}
    for name in linears:
        if left_out := [part for part in fused_layer_names(name) if part in present and part not in linears]:
            return f"vLLM fuses {name} with {left_out[0]}, which quant.ignore leaves dense"
    return ""


def _divide(whole: LayerShape, sides: tuple[Side, ...], count: int) -> list[LayerShape]:
    """Return what a GPU of `count` can have of a layer."""
    if count == 1:
        return [whole]
    parts = {
        "in": LayerShape(whole.in_features // count, whole.out_features),
        "out": LayerShape(whole.in_features, whole.out_features // count),
    }
    return [parts[side] for side in sides]


def choose_kernel(shape: LayerShape, config: Config, whole: LayerShape | None = None) -> tuple[str, str]:
    """Return the name of vLLM's kernel for one layer and an empty text, or "" and why there is none.

    `shape`: of a GPU's part; `whole`: of the layer that is divided, if it is.
    """
    if shape.in_features % config.quant.group_size:
        return "", f"groups of {config.quant.group_size} do not come out even on each GPU"
    os.environ.update(VLLM_ENVIRONMENT)
    linear = importlib.import_module("vllm.model_executor.kernels.linear")
    try:
        return linear.choose_mp_linear_kernel(_layer_config(shape, whole or shape, config)).__name__, ""
    except ValueError as error:
        return "", _last_reason(str(error))


def explain_missing_cpu_kernel() -> str:
    """Return why vLLM on this machine's CPU cannot compute with 4-bit codes; empty when it can, or has a GPU.

    vLLM's package for CPUs has a library for each instruction set, and not every kernel is in each of them.
    """
    os.environ.update(VLLM_ENVIRONMENT)
    platform = find_platform()
    importlib.import_module("vllm._custom_ops")  # which loads the library
    if platform != "cpu":
        return ""
    if not hasattr(torch.ops._C, _CPU_OPERATOR):
        return f"vLLM's library for this CPU has no {_CPU_OPERATOR}, which needs AVX-512"
    return "" if request_amx() else "Linux refuses this process the AMX tiles that vLLM's 4-bit kernel uses"


def find_platform() -> str:
    """Return the device that the installed vLLM is for, "cuda" or "cpu". Raises ConfigError where there is none."""
    from vllm.platforms import current_platform

    if not current_platform.device_type:
        raise ConfigError("the installed vLLM suits no device of this machine: see `rayqd doctor`")
    return current_platform.device_type


def request_amx() -> bool:
    """Return whether AMX tiles can be used wherever the CPU has them.

    A process has to ask Linux for them once, and vLLM's 4-bit kernel, which uses them unasked, is an illegal
    instruction until it has. Some other product in bfloat16 may ask by chance, sooner or later.
    """
    return not torch.cpu._is_amx_tile_supported() or torch.cpu._init_amx()  # pyright: ignore[reportPrivateUsage]


def _layer_config(shape: LayerShape, whole: LayerShape, config: Config) -> MPLinearLayerConfig:
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    asymmetric = config.quant.rule == "asymmetric"
    asked: Mapping[str, object] = {
        "full_weight_shape": tuple(whole),
        "partition_weight_shape": tuple(shape),
        "weight_type": scalar_types.uint4 if asymmetric else scalar_types.uint4b8,
        "act_type": torch_dtype(config.model.dtype),
        "group_size": config.quant.group_size,
        "zero_points": asymmetric,
        "has_g_idx": False,  # in vLLM's earlier versions
    }
    known = {field.name for field in fields(MPLinearLayerConfig)}
    return MPLinearLayerConfig(**{key: value for key, value in asked.items() if key in known})  # pyright: ignore[reportArgumentType]


def _last_reason(message: str) -> str:
    """Return the last line of vLLM's list of refusals, which is that of its most general kernel."""
    return message.strip().rpartition("\n")[2].strip().replace(" cannot implement due to:", ":")
