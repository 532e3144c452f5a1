"""An NF4 or FP4 model as a directory that transformers with bitsandbytes loads as it is.

The names are those of bitsandbytes' `Linear4bit`, the bytes our codes and scales: nothing is rounded again. A layer is
`weight` (two codes a byte, the first in the high half), `weight.absmax`, `weight.quant_map`, with double quantization
`weight.nested_absmax` and `weight.nested_quant_map`, and the rest as JSON in `weight.quant_state.bitsandbytes__nf4`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.errors import ModelError
from rayqd.export.destination import export_directory, seal_export
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.shards import MAX_SHARD_BYTES, write_shards
from rayqd.files import directory_bytes
from rayqd.quant import Quantized, pack, unpack
from rayqd.quant.formats import FORMATS
from rayqd.quant.nested import BLOCK_SIZE, make_dynamic_map

_STATE = "weight.quant_state.bitsandbytes__"
_REQUIRED = ("weight.absmax", "weight.quant_map")


def make_quantization_config(quant: QuantConfig, *, dtype: torch.dtype, skipped: list[str]) -> dict[str, JsonValue]:
    """Return the `quantization_config` of config.json; `skipped` are the layers that stay dense."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "llm_int8_skip_modules": [*skipped],
        "bnb_4bit_compute_dtype": _name(dtype),
        "bnb_4bit_quant_type": quant.format,
        "bnb_4bit_use_double_quant": quant.double_quant,
        "bnb_4bit_quant_storage": "uint8",
    }


def write_model(
    model: QuantizedModel, directory: Path, *, overwrite: bool = True, max_shard_bytes: int = MAX_SHARD_BYTES
) -> int:
    """Write `directory` in one piece; returns its bytes. StorageError leaves nothing behind."""
    dense = model.dense_to_store()
    with export_directory(directory, num_bytes=model.stored_bytes(), overwrite=overwrite) as scratch:
        config = make_quantization_config(model.quant, dtype=model.dtype, skipped=_dense_layers(model))
        model.save_metadata(scratch, config)
        write_shards(_tensors(dense, model), scratch, max_shard_bytes)
        seal_export(scratch)
        written_bytes = directory_bytes(scratch)
    return written_bytes


def make_layer_tensors(quantized: Quantized, quant: QuantConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer by what follows its name and a dot. A loader gets values in `dtype`."""
    packed, codebook = pack(quantized, quant.format), FORMATS[quant.format].codebook
    assert codebook is not None
    state: dict[str, JsonValue] = {
        "quant_type": quant.format,
        "blocksize": quant.group_size,
        "dtype": _name(dtype),
        "shape": [*quantized.codes.shape],
    }
    tensors = {
        "weight": packed["weight_packed"].reshape(-1, 1),
        "weight.absmax": packed["weight_absmax"].reshape(-1),
        "weight.quant_map": torch.tensor(codebook.values, dtype=torch.float32),
    }
    if quantized.nested is not None:
        tensors["weight.nested_absmax"] = quantized.nested.scales
        tensors["weight.nested_quant_map"] = make_dynamic_map(torch.device("cpu")).clone()
        state |= {
            "nested_blocksize": BLOCK_SIZE,
            "nested_dtype": "float32",
            "nested_offset": quantized.nested.offset.item(),
        }
    tensors[_STATE + quant.format] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def read_quantized(directory: Path) -> dict[str, Quantized]:
    """Read the codes of a checkpoint by layer. Raises ModelError when it has none or cannot be read."""
    layers: dict[str, dict[str, Tensor]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in _layer_tensors(file):
            layer, _, part = name.rpartition(".weight")
            layers.setdefault(layer, {})[f"weight{part}"] = tensor
    if not layers:
        raise ModelError(f"{directory} holds no weights of bitsandbytes' (*.safetensors with weight.quant_map)")
    for layer, tensors in layers.items():
        missing = [part for part in ("weight", *_REQUIRED) if part not in tensors]
        if missing:
            raise ModelError(f"{directory} is incomplete: {layer} lacks {', '.join(missing)}; write it again")
    return {layer: _unpack_layer(tensors) for layer, tensors in layers.items()}


def _layer_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of quantized layers: their codes are the only uint8 among what ends in weight."""
    try:
        with cast(Any, safe_open)(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                codes = name.endswith(".weight") and tensors.get_slice(name).get_dtype() == "U8"
                if codes or ".weight." in name:
                    yield name, tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {file}: {error}; write it again") from error


def _unpack_layer(tensors: Mapping[str, Tensor]) -> Quantized:
    (state_name,) = (name for name in tensors if name.startswith(_STATE))
    state = json.loads(bytes(tensors[state_name].tolist()))
    num_rows = state["shape"][0]
    packed = {"weight_packed": tensors["weight"].reshape(num_rows, -1), "weight_absmax": tensors["weight.absmax"]}
    if "weight.nested_absmax" in tensors:
        packed["weight_nested_absmax"] = tensors["weight.nested_absmax"]
        packed["weight_nested_offset"] = torch.tensor(state["nested_offset"], dtype=torch.float32)
    else:
        packed["weight_absmax"] = packed["weight_absmax"].reshape(num_rows, -1)
    return unpack(packed)


def _tensors(dense: Mapping[str, Tensor], model: QuantizedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield everything to write, made one at a time."""
    for name, tensor in dense.items():
        yield name, model.to_stored(tensor)
    for layer, weight in model.quantized.items():
        for part, tensor in make_layer_tensors(weight, model.quant, model.dtype).items():
            yield f"{layer}.{part}", tensor
    yield from model.carried_tensors()


def _dense_layers(model: QuantizedModel) -> list[str]:
    """Name every dense matrix by its layer's full name: transformers would take the ends of names for whole ones."""
    layers = [name.removesuffix(".weight") for name, t in model.dense.items() if t.dim() == 2]
    return list(dict.fromkeys(layer for layer in (*layers, *model.dense_layers) if layer not in model.quantized))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
