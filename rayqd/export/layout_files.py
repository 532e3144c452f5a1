"""A model in the layout of GPTQ, AWQ or MLX, written as a directory and read back from one.

transformers needs other packages for GPTQ and AWQ, and a Mac for MLX. So an export is checked as the dense model that
its files stand for: each layer is unpacked as its format says, and transformers is given the values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.export.destination import export_directory, seal_export
from rayqd.export.layouts import LAYOUTS, LayoutKind, check_layers
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.shards import MAX_SHARD_BYTES, write_shards
from rayqd.export.source_files import read_config, write_config
from rayqd.export.stacked_experts import group_for_mlx, name_mlx_experts
from rayqd.files import directory_bytes
from rayqd.model.load import load_meta_model
from rayqd.model.source_weights import read_stored_tensors, weight_files
from rayqd.quant import Quantized
from rayqd.quant.int4 import dequantize_codes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MLX_KEY = "quantization"  # of config.json, which MLX reads; its own writer repeats it as quantization_config


def write_model(
    kind: LayoutKind,
    model: QuantizedModel,
    directory: Path,
    *,
    overwrite: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write `directory` in one piece; returns its bytes.

    Raises ModelError, naming the layer, where one does not fit; StorageError leaves nothing behind.
    """
    if kind != "mlx":  # which have no embedding of codes
        model = model.with_tied_head_dense()
    check_layers(kind, model)
    dense, layout = model.dense_to_store(), LAYOUTS[kind]
    with export_directory(directory, num_bytes=model.stored_bytes(), overwrite=overwrite) as scratch:
        described = layout.describe(model)
        model.save_metadata(scratch, described)
        if kind == "mlx":
            write_config(scratch, {**read_config(scratch), _MLX_KEY: described})
        write_shards(_tensors(kind, dense, model), scratch, max_shard_bytes)
        seal_export(scratch)
        written_bytes = directory_bytes(scratch)
    return written_bytes


def is_mlx(config: Mapping[str, JsonValue]) -> bool:
    """Return whether config.json is that of a model which MLX quantized."""
    return isinstance(config.get(_MLX_KEY), dict)


def load_unpacked(
    directory: Path, kind: LayoutKind, *, dtype: torch.dtype, attention: str | None = None
) -> PreTrainedModel:
    """Load the dense model that the files stand for. Raises ModelError where a layer is not as rayqd writes it."""
    return load_dense(directory, read_values(directory, kind), dtype=dtype, attention=attention)


def load_dense(
    directory: Path, values: Mapping[str, Tensor], *, dtype: torch.dtype, attention: str | None = None
) -> PreTrainedModel:
    """Load the model that config.json describes, not quantized, with `values` by the names of its checkpoint."""
    from transformers import AutoConfig

    from rayqd.model.forward.of_model import attention_of

    config = AutoConfig.from_pretrained(directory)
    if hasattr(config, "quantization_config"):
        delattr(config, "quantization_config")
    model_class = cast(Any, type(load_meta_model(directory)))
    return model_class.from_pretrained(
        None,
        config=config,
        state_dict=dict(values),
        dtype=dtype,
        attn_implementation=attention or attention_of(config),
    )


def check_first_layer(directory: Path, kind: LayoutKind) -> None:
    """Raise ModelError where `read_values` would: as the first of the packed layers is, so are the others, mostly."""
    layers = [name.removesuffix(".scales") for name in read_stored_tensors(directory) if name.endswith(".scales")]
    read_values(directory, kind, f"{layers[0]}." if layers else "")


def read_values(directory: Path, kind: LayoutKind, prefix: str = "") -> dict[str, Tensor]:
    """Read a checkpoint as dense tensors: of a packed layer `name.weight` [N, K], in the dtype of its scales.

    With a `prefix` those alone whose names begin with it. Raises ModelError where it holds no packed layer, or one that
    lacks a part or is packed in another way.
    """
    config = json.loads((directory / "config.json").read_text())
    described = config[_MLX_KEY if kind == "mlx" else "quantization_config"]
    if described.get("bits") != 4:
        raise ModelError(f"{directory} has {described.get('bits')} bits a weight, and rayqd reads {kind} of 4")
    layout, dense = LAYOUTS[kind], dict(stored_tensors(directory, prefix))
    layers = [name.removesuffix(".scales") for name in dense if name.endswith(".scales")]
    if not layers:
        raise ModelError(f"{directory} holds no weights of {kind} (*.safetensors with scales)")
    for layer in layers:
        missing = [part for part in layout.parts if f"{layer}.{part}" not in dense]
        if missing:
            raise ModelError(f"{directory} is incomplete: {layer} lacks {', '.join(missing)}; write it again")
        tensors = {part: dense.pop(f"{layer}.{part}") for part in layout.parts}
        stacked = len(tensors["scales"]) if tensors["scales"].dim() == 3 else 1  # experts, as rows one below the other
        tensors = {part: tensor.flatten(0, 1) if tensor.dim() == 3 else tensor for part, tensor in tensors.items()}
        try:
            own = described.get(layer)  # MLX: of a module that has others than the model
            weight = layout.unpack(tensors, {**described, **own} if isinstance(own, dict) else described)
        except ValueError as error:
            raise ModelError(f"{directory} is {kind} that rayqd does not read: {layer}: {error}") from error
        if weight.quant_group_size != described["group_size"]:
            raise ModelError(f"{directory}: {layer} has groups of {weight.quant_group_size}, not those of config.json")
        values = dequantize_codes(weight.codes, weight.scales, weight.zero_points)
        experts = name_mlx_experts(layer, stacked) if kind == "mlx" else None
        parts = values.chunk(stacked) if experts else [values]
        dense |= {f"{name}.weight": part for name, part in zip(experts or [layer], parts, strict=True)}
    return dense


def stored_tensors(directory: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a checkpoint whose names begin with `prefix`. Raises ModelError where a file is damaged."""
    for file in weight_files(directory):
        try:
            with cast(Any, safe_open)(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if name.startswith(prefix):
                        yield name, tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read {file}: {error}; write it again") from error


def _tensors(kind: LayoutKind, dense: Mapping[str, Tensor], model: QuantizedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield everything to write, made one at a time."""
    for name, tensor in dense.items():
        yield name, model.to_stored(tensor)
    layers = {**model.quantized, **model.head_layers}
    groups = group_for_mlx(layers) if kind == "mlx" else {layer: (layer,) for layer in layers}
    for name, members in groups.items():
        packed = [_pack(kind, layer, layers[layer], model) for layer in members]
        for part in packed[0]:
            tensors = [each[part].cpu() for each in packed]
            yield f"{name}.{part}", (tensors[0] if members == (name,) else torch.stack(tensors)).contiguous()
    yield from model.carried_tensors()


def _pack(kind: LayoutKind, layer: str, weight: Quantized, model: QuantizedModel) -> Mapping[str, Tensor]:
    """Return the parts of a layer. Raises ModelError, naming it, where the layout cannot hold it."""
    if kind == "gptq" and model.quant.rule == "asymmetric" and weight.zero_points is None:
        weight = replace(weight, zero_points=torch.zeros_like(weight.scales, dtype=torch.int8))
    try:
        return LAYOUTS[kind].pack(weight)
    except ValueError as error:
        raise ModelError(f"{kind} cannot hold {layer}: {error}; use --as compressed-tensors") from error
