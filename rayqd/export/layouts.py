"""INT4 models in the layouts of older servers and of Apple's: GPTQ, AWQ and MLX.

The three differ in how a layer's tensors are packed and in what config.json says of them. Codes and scales are those
that were trained; nothing is rounded again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.export.quantized_model import QuantizedModel
from rayqd.quant.grid import Quantized
from rayqd.quant.packing import awq, gptq, mlx
from rayqd.quant.packing.int4 import CODES_PER_INT32

LayoutKind = Literal["gptq", "awq", "mlx"]
GROUP_SIZES = (32, 64, 128)  # those that every reader of the three has kernels for


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a layer lies in the files, and how config.json describes it."""

    parts: tuple[str, ...]  # the tensors of a layer, by what follows its name
    pack: Callable[[Quantized], Mapping[str, Tensor]]
    describe: Callable[[QuantizedModel], dict[str, JsonValue]]  # `quantization_config`
    unpack: Callable[[Mapping[str, Tensor], Mapping[str, JsonValue]], Quantized]  # of parts and `quantization_config`


def check_layout(kind: LayoutKind, quant: QuantConfig, dtype: str) -> None:
    """Raise ConfigError when the layout, or what reads it, has no place for the grid of a run in `dtype`."""
    if quant.format != "int4" or quant.group_size not in GROUP_SIZES:
        raise ConfigError(
            f"{kind} holds int4 in groups of 32, 64 or 128, and this run is {quant.format} in groups of "
            f"{quant.group_size}: train with --quant.group-size 128, or export it as it is usually written"
        )
    if kind == "mlx" and quant.rule == "asymmetric":
        raise ConfigError(
            "mlx stores scale · zero point in 16 bits, which would round it, and this run is asymmetric: use --as awq, "
            "or train with --quant.rule signed"
        )
    if kind != "mlx" and dtype == "float32":
        raise ConfigError(
            f"what reads {kind} has 16-bit scales, and this run is float32: use --as compressed-tensors, or train with "
            "--model.dtype bfloat16"
        )


def check_layers(kind: LayoutKind, model: QuantizedModel) -> None:
    """Raise ModelError, naming the layer, where one does not fit the layout or a reader would take it for dense."""
    layers = {**model.quantized, **model.head_layers}
    for name, weight in layers.items():
        if kind == "awq" and weight.bits != 4:
            raise ModelError(
                f"awq has codes of 4 bits alone, and {name} has {weight.bits}: use --as gptq or compressed-tensors"
            )
        if kind != "mlx" and weight.codes.shape[0] % CODES_PER_INT32:
            raise ModelError(
                f"{kind} packs eight output features together, and {name} has {weight.codes.shape[0]}: use --as "
                "compressed-tensors, or leave it in 16 bits with quant.ignore"
            )
    if kind == "awq":
        names = [*layers, *model.aliases]
        dense = dense_layer_names(model)
        pattern = re.compile("|".join(re.escape(name) for name in dense) or r"(?!)")
        for name in names:
            if found := pattern.search(name):
                raise ModelError(
                    f"awq's readers look for the names of dense layers inside others, and {found[0]} is inside {name}: "
                    "use --as gptq or compressed-tensors"
                )


def dense_layer_names(model: QuantizedModel) -> list[str]:
    """Return every linear layer that is not quantized, by its whole name."""
    quantized = {*model.quantized, *model.aliases, *model.head_layers, *(model.head.aliases if model.head else ())}
    matrices = [name.removesuffix(".weight") for name, t in model.dense.items() if name.endswith("lm_head.weight")]
    return [name for name in dict.fromkeys(["lm_head", *matrices, *model.dense_layers]) if name not in quantized]


def _describe_gptq(model: QuantizedModel) -> dict[str, JsonValue]:
    is_symmetric = model.quant.rule != "asymmetric"
    version = "gptq" if is_symmetric else "gptq_v2"
    left_out: dict[str, JsonValue] = {
        rf"-:^{re.escape(name)}$": {} for name in dense_layer_names(model) if name != "lm_head"
    }
    head = model.head_layers
    other_bits: dict[str, JsonValue] = {
        rf"+:^{re.escape(name)}$": {"bits": weight.bits} for name, weight in head.items() if weight.bits != 4
    }
    dynamic: dict[str, JsonValue] = {**left_out, **other_bits}
    described: dict[str, JsonValue] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": model.quant.group_size,
        "desc_act": False,
        "sym": is_symmetric,
        "lm_head": bool(head),
        "checkpoint_format": version,
        "format": version,
        "pack_dtype": "int32",
    }
    if dynamic:
        described["dynamic"] = dynamic
    return described


def _describe_awq(model: QuantizedModel) -> dict[str, JsonValue]:
    dense: list[JsonValue] = [*dense_layer_names(model)]
    described: dict[str, JsonValue] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": model.quant.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": dense,
    }
    if model.head_layers:
        described["lm_head"] = True
    return described


def _describe_mlx(model: QuantizedModel) -> dict[str, JsonValue]:
    """Return the model's settings, and under its name those of a module which has others."""
    common: dict[str, JsonValue] = {"group_size": model.quant.group_size, "bits": 4, "mode": "affine"}
    own: dict[str, JsonValue] = {name: {**common, "bits": each.bits} for name, each in model.head_layers.items()}
    return common | own


def _unpack_gptq(tensors: Mapping[str, Tensor], described: Mapping[str, JsonValue]) -> Quantized:
    is_symmetric = described.get("sym") is True
    version = described.get("checkpoint_format", "gptq")
    if version != ("gptq" if is_symmetric else "gptq_v2"):
        raise ValueError(f"sym is {described.get('sym')} with checkpoint_format {version}, which is not rayqd's")
    return gptq.unpack(tensors, symmetric=is_symmetric)


def _unpack_awq(tensors: Mapping[str, Tensor], described: Mapping[str, JsonValue]) -> Quantized:
    if described.get("zero_point") is not True or str(described.get("version", "gemm")).lower() != "gemm":
        raise ValueError(f"version {described.get('version')} of awq is not rayqd's")
    return awq.unpack(tensors, symmetric=False)


def _unpack_mlx(tensors: Mapping[str, Tensor], described: Mapping[str, JsonValue]) -> Quantized:
    if described.get("mode", "affine") != "affine":
        raise ValueError(f"mode {described.get('mode')} of MLX is not rayqd's")
    return mlx.unpack(tensors, 8 if described.get("bits") == 8 else 4)


LAYOUTS: Mapping[LayoutKind, Layout] = {
    "gptq": Layout(parts=gptq.PARTS, pack=gptq.pack, describe=_describe_gptq, unpack=_unpack_gptq),
    "awq": Layout(parts=awq.PARTS, pack=awq.pack, describe=_describe_awq, unpack=_unpack_awq),
    "mlx": Layout(parts=mlx.PARTS, pack=mlx.pack, describe=_describe_mlx, unpack=_unpack_mlx),
}
