"""A quantized model as a directory that transformers and vLLM load as it is (compressed-tensors).

INT4 is stored as `pack-quantized`, NVFP4 as `nvfp4-pack-quantized` with 16-bit activations (the preset NVFP4A16). The
codes and scales are written as they are given and never computed again: what was trained is what is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
from rayqd.model.rounded_head import RoundedHead
from rayqd.quant import pack, unpack
from rayqd.quant.formats import FORMATS
from rayqd.quant.grid import Quantized
from rayqd.quant.select import is_ignored

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

# The last one of a set tells the formats apart: INT4 has a shape, NVFP4 a scale for the whole tensor.
REQUIRED_PARTS = [("weight_packed", "weight_scale", known.own_part) for known in FORMATS.values() if known.scheme]
PACKED_PARTS = (*{part for required in REQUIRED_PARTS for part in required}, "weight_zero_point")


def make_quantization_config(
    quant: QuantConfig, dense_layers: Iterable[str] = (), head: RoundedHead | None = None
) -> dict[str, JsonValue]:
    """Return the `quantization_config` of config.json; `dense_layers` are left out beside `quant.ignore`.

    compressed-tensors compares whole names, so an entry of `quant.ignore` that may be the last parts of a name is
    written twice: as it is, and as a pattern. A `head` of codes is a group of its own.
    """
    entries = [entry for entry in quant.ignore if head is None or not _means_head(entry, head)]
    ignore: list[JsonValue] = [*entries, *(rf"re:.*\.{re.escape(entry)}$" for entry in entries)]
    ignore += [layer for layer in dense_layers if not is_ignored(layer, entries)]
    known = FORMATS[quant.format]
    symmetric = quant.rule != "asymmetric"
    weights: dict[str, JsonValue] = {
        "num_bits": 4,
        "symmetric": symmetric,
        "group_size": quant.group_size,
        **known.scheme_weights,
    }
    unquantized: dict[str, JsonValue] = {"input_activations": None, "output_activations": None}
    groups: dict[str, JsonValue] = {}
    if head is not None:  # first: a layer belongs to the first group that has a target for it
        own: dict[str, JsonValue] = {**weights, "num_bits": head.codes.bits, "symmetric": True}
        groups["head"] = {"targets": _head_targets(head), "weights": own, **unquantized}
    groups["group_0"] = {"targets": ["Linear"], "weights": weights, **unquantized}
    return {
        "quant_method": "compressed-tensors",
        "format": known.scheme,
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": groups,
    }


def _means_head(entry: str, head: RoundedHead) -> bool:
    """Return whether an entry of `quant.ignore` names the head; `lm_head` always does."""
    return entry == "lm_head" or any(is_ignored(name, [entry]) for name in (head.modules.head, *head.aliases))


def _head_targets(head: RoundedHead) -> list[JsonValue]:
    """Return patterns of the head's names; transformers takes a group of whole names for the experts'."""
    names = dict.fromkeys([head.layer, *head.aliases])
    patterns = (r"(.*\.)?lm_head" if name.endswith("lm_head") else re.escape(name) for name in names)
    return [*dict.fromkeys(f"re:{pattern}$" for pattern in patterns)]


def write_model(
    model: QuantizedModel, directory: Path, *, overwrite: bool = True, max_shard_bytes: int = MAX_SHARD_BYTES
) -> int:
    """Write `directory` in one piece; returns its bytes. StorageError leaves nothing behind.

    transformers loads no embedding of codes: a head that is the embedding is written as the values of its codes.
    """
    model = model.with_tied_head_dense()
    dense = model.dense_to_store()
    with export_directory(directory, num_bytes=model.stored_bytes(), overwrite=overwrite) as scratch:
        model.save_metadata(scratch, make_quantization_config(model.quant, model.ignored_layers(), model.head))
        write_shards(_tensors(dense, model), scratch, max_shard_bytes)
        seal_export(scratch)
        written_bytes = directory_bytes(scratch)
    return written_bytes


def write_checkpoint(
    *,
    config: PreTrainedConfig,
    generation_config: GenerationConfig | None,
    dense: Mapping[str, Tensor],
    quantized: Mapping[str, Quantized],
    quant: QuantConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write `directory`, or replace it, in one piece; returns its bytes.

    `quantized` is keyed by the layers' qualified names, `dense` by the names of the state dict; from `dense` the
    weights of quantized layers and a tied lm_head are left out. Floating tensors of `dense` are written in `dtype`, by
    default that of INT4 scales, or else their own. A file above `max_shard_bytes` is split, with an index.

    Raises StorageError, leaving nothing behind, when the files cannot be written.
    """
    model = QuantizedModel(
        config=config,
        generation_config=generation_config,
        dense=dense,
        quantized=quantized,
        quant=quant,
        dtype=dtype or _default_dtype(dense, quantized, quant),
        tokenizer=tokenizer,
    )
    return write_model(model, directory, max_shard_bytes=max_shard_bytes)


def read_quantized(directory: Path) -> dict[str, Quantized]:
    """Read the codes of a checkpoint by layer. Raises ModelError when it has none, or a layer lacks a part."""
    layers: dict[str, dict[str, Tensor]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in _packed_tensors(file):
            layer, _, part = name.rpartition(".")
            layers.setdefault(layer, {})[part] = tensor
    if not layers:
        raise ModelError(f"{directory} holds no packed INT4 weights (*.safetensors with weight_packed)")
    for layer, tensors in layers.items():
        missing = min(([part for part in required if part not in tensors] for required in REQUIRED_PARTS), key=len)
        if missing:
            raise ModelError(f"{directory} is incomplete: {layer} lacks {', '.join(missing)}; write it again")
    return {layer: unpack(tensors) for layer, tensors in layers.items()}


def _packed_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with cast(Any, safe_open)(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if name.endswith(PACKED_PARTS):
                    yield name, tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {file}: {error}; write it again") from error


def _default_dtype(dense: Mapping[str, Tensor], quantized: Mapping[str, Quantized], quant: QuantConfig) -> torch.dtype:
    if quant.format == "int4":
        return next(iter(quantized.values())).scales.dtype
    return next(tensor.dtype for tensor in dense.values() if tensor.is_floating_point())


def _tensors(dense: Mapping[str, Tensor], model: QuantizedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield everything to write, made one at a time."""
    for name, tensor in dense.items():
        yield name, model.to_stored(tensor)
    for layer, weight in {**model.quantized, **model.head_layers}.items():
        for part, tensor in pack(weight, model.quant.format).items():
            yield f"{layer}.{part}", tensor.cpu().contiguous()
    yield from model.carried_tensors()
