"""A quantized model as a directory that transformers and vLLM load as it is (compressed-tensors, `pack-quantized`).

The codes and scales are written as they are given and never computed again: what was trained is what is stored.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from rayqd.config.sections import Quant
from rayqd.errors import ModelError, StorageError
from rayqd.quant.grid import Quantized
from rayqd.quant.packing import pack, unpack

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

MAX_SHARD_BYTES = 5 * 10**9
INDEX_NAME = "model.safetensors.index.json"
PACKED_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")


def quantization_config(quant: Quant) -> dict[str, Any]:
    """The `quantization_config` of config.json.

    compressed-tensors compares whole names, so an entry of `quant.ignore` that may be the last parts of a name is
    written twice: as it is, and as a pattern.
    """
    ignore = [*quant.ignore, *(rf"re:.*\.{re.escape(entry)}$" for entry in quant.ignore)]
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": quant.rule != "asymmetric",
        "strategy": "group",
        "group_size": quant.group_size,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignore,
        "config_groups": {"group_0": group},
    }


def write_checkpoint(
    *,
    config: PreTrainedConfig,
    generation_config: GenerationConfig | None,
    dense: Mapping[str, Tensor],
    quantized: Mapping[str, Quantized],
    quant: Quant,
    tokenizer: PreTrainedTokenizerBase | None,
    directory: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write `directory`, or replace it, in one piece; returns its bytes.

    `quantized` is keyed by the layers' qualified names, `dense` by the names of the state dict; from `dense` the
    weights of quantized layers and a tied lm_head are left out. Floating tensors of `dense` are written in `dtype`, by
    default that of the scales. A file above `max_shard_bytes` is split, with an index.

    Raises StorageError, leaving nothing behind, when the files cannot be written.
    """
    dtype = dtype or next(iter(quantized.values())).scales.dtype
    dense = _without_repeats(dense, quantized, tied=bool(config.tie_word_embeddings))
    num_bytes = sum(_stored_bytes(dense, quantized, dtype))
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as temporary:
            scratch = Path(temporary, "checkpoint")
            scratch.mkdir()
            for part in (_model_config(config, quant, dtype), generation_config, tokenizer):
                if part is not None:
                    part.save_pretrained(scratch)  # pyright: ignore[reportUnknownMemberType]
            _write_shards(_tensors(dense, quantized, dtype), scratch, max_shard_bytes)
            written_bytes = sum(file.stat().st_size for file in scratch.rglob("*") if file.is_file())
            _put_in_place(scratch, directory, retired=Path(temporary, "retired"))
            return written_bytes
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"cannot write the checkpoint {directory}, which needs {num_bytes} bytes: {error}; "
            "make room there or choose another runs_dir"
        ) from error


def read_quantized(directory: Path) -> dict[str, Quantized]:
    """The codes of a checkpoint by layer. Raises ModelError when it has none, or a layer lacks a part."""
    parts: dict[str, dict[str, Tensor]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in _packed_tensors(file):
            layer, _, part = name.rpartition(".")
            parts.setdefault(layer, {})[part] = tensor
    if not parts:
        raise ModelError(f"{directory} holds no packed INT4 weights (*.safetensors with weight_packed)")
    for layer, tensors in parts.items():
        missing = [part for part in PACKED_PARTS[:3] if part not in tensors]
        if missing:
            raise ModelError(f"{directory} is incomplete: {layer} lacks {', '.join(missing)}; write it again")
    return {layer: unpack(tensors) for layer, tensors in parts.items()}


def _packed_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with cast(Any, safe_open)(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                if name.endswith(PACKED_PARTS):
                    yield name, tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {file}: {error}; write it again") from error


def _without_repeats(
    dense: Mapping[str, Tensor], quantized: Mapping[str, Quantized], *, tied: bool
) -> dict[str, Tensor]:
    left_out = {f"{layer}.weight" for layer in quantized}
    if tied:
        left_out.add("lm_head.weight")
    return {name: tensor for name, tensor in dense.items() if name not in left_out}


def _tensors(
    dense: Mapping[str, Tensor], quantized: Mapping[str, Quantized], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Everything to write, made one at a time."""
    for name, tensor in dense.items():
        tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        yield name, tensor.contiguous()
    for layer, weight in quantized.items():
        for part, tensor in pack(weight).items():
            yield f"{layer}.{part}", tensor.cpu().contiguous()


def _stored_bytes(dense: Mapping[str, Tensor], quantized: Mapping[str, Quantized], dtype: torch.dtype) -> Iterator[int]:
    for tensor in dense.values():
        yield tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.dtype.itemsize)
    for weight in quantized.values():
        zero_points = 0 if weight.zero_points is None else weight.zero_points.numel() // 2
        yield weight.codes.numel() // 2 + weight.scales.nbytes + zero_points


def _model_config(config: PreTrainedConfig, quant: Quant, dtype: torch.dtype) -> PreTrainedConfig:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = copy.deepcopy(config)
    config.dtype = dtype
    config.quantization_config = quantization_config(quant)
    if not config.architectures:  # vLLM chooses its model by it
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return config


def _write_shards(tensors: Iterable[tuple[str, Tensor]], directory: Path, max_shard_bytes: int) -> None:
    """One model.safetensors, or as many as keep each at or below `max_shard_bytes`, with the index."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total_bytes = pending_bytes = 0

    def flush() -> None:
        save_file(pending, directory / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > max_shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor
        pending_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()

    if len(shards) == 1:
        (directory / "shard-0").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{i}").rename(directory / file_name)
        weight_map |= dict.fromkeys(names, file_name)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _put_in_place(scratch: Path, directory: Path, *, retired: Path) -> None:
    """`scratch` becomes `directory`; what was there goes with the temporary directory, or comes back on failure."""
    if not directory.exists():
        scratch.rename(directory)
        return
    directory.rename(retired)
    try:
        scratch.rename(directory)
    except OSError:
        retired.rename(directory)
        raise
