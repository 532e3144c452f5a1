"""A student on the INT4 grid as one GGUF file for llama.cpp, its layers as Q4_0.

An output head of 8-bit codes, and an embedding tied to it, are Q8_0: a block is the scale d and 32 codes as they are.

A Q4_0 block is 32 weights of a row: a scale d as float16, and 16 bytes in which byte i holds weight i in its low half
and weight i + 16 in its high half, each as code + 8. These are our codes and our scales; nothing is rounded again.
llama.cpp multiplies d · code without the rounding to 16 bits that the student was trained with.

Shapes: N rows, K columns, B = K / 32 blocks a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from numpy.typing import NDArray
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError, ModelError
from rayqd.export.destination import export_directory, seal_export
from rayqd.export.gguf_architecture import GGUFArchitecture
from rayqd.export.gguf_architectures import ARCHITECTURES
from rayqd.export.gguf_metadata import add_metadata, rope_factors
from rayqd.export.gguf_tokenizer import add_tokenizer
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.stacked_experts import is_router, stack_experts
from rayqd.files import directory_bytes
from rayqd.quant import Quantized

FILE_NAME = "model-Q4_0.gguf"
BLOCK = 32
BLOCK_BYTES = 18
BLOCK_BYTES_8 = 34
ROPE_FREQS = "rope_freqs.weight"

_TYPES = {
    torch.bfloat16: GGMLQuantizationType.BF16,
    torch.float16: GGMLQuantizationType.F16,
    torch.float32: GGMLQuantizationType.F32,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTensor:
    """A tensor of the file, its bytes made only when they are written."""

    name: str
    shape: tuple[int, ...]  # of its bytes
    type: GGMLQuantizationType
    layer: str  # its name in the original model; empty for what only GGUF has
    parts: tuple[str, ...] = ()  # the quantized layers that it is: one, or those of all experts


def check_gguf(quant: QuantConfig, model_type: str) -> None:
    """Raise ConfigError when a model with this grid and of this architecture has no place in a Q4_0 file."""
    if quant.format != "int4" or quant.rule == "asymmetric" or quant.group_size != BLOCK:
        raise ConfigError(
            f"GGUF Q4_0 holds int4 in groups of {BLOCK} without zero points, not {quant.format} in groups of "
            f"{quant.group_size} by rule {quant.rule}: train with --quant.group-size {BLOCK} --quant.rule signed"
        )
    if model_type not in ARCHITECTURES:
        raise ConfigError(f"GGUF export knows {', '.join(ARCHITECTURES)}, not {model_type}")


def write_gguf(model: QuantizedModel, directory: Path, *, overwrite: bool = True) -> int:
    """Write `directory` with one file, `model-Q4_0.gguf`; returns its bytes.

    Raises ConfigError where the format, or llama.cpp, has no place for the model, and ModelError, naming the layer,
    at a scale that float16 cannot hold exactly.
    """
    check_gguf(model.quant, model.config.model_type)
    architecture = ARCHITECTURES[model.config.model_type]
    architecture.check(model.config)
    dense = model.dense_to_store()
    tensors = list(_tensors(model, dense, architecture))
    num_bytes = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    with export_directory(directory, num_bytes=num_bytes, overwrite=overwrite) as scratch:
        model.save_card(scratch)
        writer = GGUFWriter(scratch / FILE_NAME, MODEL_ARCH_NAMES[architecture.arch])
        add_metadata(writer, model.config, architecture)
        add_tokenizer(writer, model.tokenizer, model.config)
        for t in tensors:
            writer.add_tensor_info(t.name, t.shape, np.dtype(np.uint8), int(np.prod(t.shape)), raw_dtype=t.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in tensors:
            writer.write_tensor_data(_bytes(t, model, dense, architecture))
        writer.close()
        seal_export(scratch)
        written_bytes = directory_bytes(scratch)
    return written_bytes


def pack_q4_0(quantized: Quantized, *, name: str) -> NDArray[np.uint8]:
    """Pack a layer into its bytes, [N, 18·B]. Raises ModelError, naming it, at a scale that float16 cannot hold."""
    d = _exact_halves(quantized, name)
    num_rows, num_blocks = quantized.scales.shape
    codes = (quantized.codes.cpu() + 8).to(torch.uint8).numpy().reshape(num_rows, num_blocks, 2, BLOCK // 2)
    nibbles = codes[:, :, 0] | (codes[:, :, 1] << np.uint8(4))
    return np.concatenate([d, nibbles], axis=-1).reshape(num_rows, num_blocks * BLOCK_BYTES)


def _exact_halves(quantized: Quantized, name: str) -> NDArray[np.uint8]:
    """Return the scales as the bytes of float16, [N, B, 2]. Raises ModelError, naming the layer, where it loses any."""
    scales = quantized.scales.cpu().float()
    halves = scales.half()
    lost = halves.float() != scales
    if bool(lost.any()):
        worst = scales[lost].abs().min().item()
        raise ModelError(
            f"{name} has {int(lost.sum())} scales out of {scales.numel()} that float16, GGUF's scale, cannot hold "
            f"exactly (such as {worst:.3g}); train with --model.dtype float16, or export it as compressed-tensors"
        )
    return halves.contiguous().numpy().view(np.uint8).reshape(*halves.shape, 2)


def pack_q8_0(quantized: Quantized, *, name: str) -> NDArray[np.uint8]:
    """Pack a head of 8-bit codes into its bytes, [N, 34·B]. Raises ModelError as `pack_q4_0` does."""
    d = _exact_halves(quantized, name)
    num_rows, num_blocks = quantized.scales.shape
    codes = quantized.codes.cpu().contiguous().numpy().view(np.uint8).reshape(num_rows, num_blocks, BLOCK)
    return np.concatenate([d, codes], axis=-1).reshape(num_rows, num_blocks * BLOCK_BYTES_8)


def gguf_name(architecture: GGUFArchitecture, num_layers: int, name: str) -> str | None:
    """Return what a GGUF file calls a tensor of the original model; None where it has no place for it."""
    names: Any = get_tensor_name_map(architecture.arch, num_layers)
    return names.get_name(name, try_suffixes=(".weight", ".bias"))


def swap_halves(rows: NDArray[Any], num_heads: int, *, back: bool = False) -> NDArray[Any]:
    """Reorder the rows [N, ...] of q or k: llama.cpp rotates neighbours in a llama's head, transformers its halves."""
    middle = (-1, 2) if back else (2, -1)
    halves = rows.reshape(num_heads, *middle, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def rotated_heads(architecture: GGUFArchitecture, config: Any, name: str) -> int | None:
    """Return how many heads' rows change places in the GGUF tensor `name`; None where they stay."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return heads.get(name.split(".")[-2]) if architecture.rotates_neighbours and "." in name else None


def norm_shift(architecture: GGUFArchitecture, name: str) -> float:
    """Return what is added to the values of the original model's tensor `name` on the way into the file."""
    return architecture.norm_shift if name.endswith("norm.weight") else 0.0


def _tensors(model: QuantizedModel, dense: dict[str, Tensor], architecture: GGUFArchitecture) -> Iterator[GGUFTensor]:
    """Yield names, shapes and types of all tensors, in the order in which they are written."""
    num_layers = model.config.num_hidden_layers

    def find(name: str) -> str:
        found = gguf_name(architecture, num_layers, name)
        if found is None:
            raise ModelError(f"GGUF has no place for the tensor {name}")
        return found

    if (factors := rope_factors(model.config)) is not None:
        yield GGUFTensor(name=ROPE_FREQS, shape=(factors.nbytes,), type=GGMLQuantizationType.F32, layer="")
    for layer, tensor in dense.items():
        name = find(layer)
        is_matrix = tensor.dim() > 1 and not is_router(name)
        dtype = model.dtype if is_matrix else torch.float32  # llama.cpp wants norms and biases in F32
        shape = (*tensor.shape[:-1], tensor.shape[-1] * dtype.itemsize)
        yield GGUFTensor(name=name, shape=tuple(shape), type=_TYPES[dtype], layer=layer)
    layers = _layers(model)
    for layer, parts in stack_experts(layers).items():
        weight = layers[parts[0]]
        num_rows, num_blocks = weight.scales.shape
        shape = (num_rows, num_blocks * (BLOCK_BYTES if weight.bits == 4 else BLOCK_BYTES_8))
        if parts != (layer,):
            shape = (len(parts), *shape)
        kind = GGMLQuantizationType.Q4_0 if weight.bits == 4 else GGMLQuantizationType.Q8_0
        yield GGUFTensor(name=find(f"{layer}.weight"), shape=shape, type=kind, layer=layer, parts=parts)


def _layers(model: QuantizedModel) -> dict[str, Quantized]:
    return {**model.quantized, **model.head_layers}


def _bytes(
    tensor: GGUFTensor, model: QuantizedModel, dense: dict[str, Tensor], architecture: GGUFArchitecture
) -> NDArray[np.uint8]:
    if not tensor.layer:
        factors = rope_factors(model.config)
        assert factors is not None
        return factors.view(np.uint8)
    if tensor.parts:
        layers, pack = _layers(model), pack_q4_0 if tensor.type == GGMLQuantizationType.Q4_0 else pack_q8_0
        rows = np.stack([pack(layers[part], name=part) for part in tensor.parts]).reshape(tensor.shape)
    else:
        values = dense[tensor.layer].detach().cpu().to(model.dtype)  # F32 holds what the other formats store
        if tensor.type == GGMLQuantizationType.F32:
            values = values.float() + norm_shift(architecture, tensor.layer)
        rows = values.contiguous().view(torch.uint8).numpy().reshape(tensor.shape)
    if (num_heads := rotated_heads(architecture, model.config, tensor.name)) is not None:
        flat = rows if rows.ndim == 2 else rows.reshape(-1, 4)  # a bias: a float32 a row
        rows = swap_halves(flat, num_heads).reshape(rows.shape)
    return np.ascontiguousarray(rows)
