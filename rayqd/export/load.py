"""An export read back: as transformers loads it, and as the quantized model it was written from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import Tensor

from rayqd.config import Config
from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ConfigError, ModelError
from rayqd.export import bitsandbytes, compressed_tensors
from rayqd.export.destination import check_export
from rayqd.export.exported_head import find_exported_head
from rayqd.export.layout_files import is_mlx, load_unpacked
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.source_names import find_aliases, find_dense_layers, match_export
from rayqd.export.write import KINDS, Kind, parse_kind
from rayqd.model.forward.of_model import attention_of
from rayqd.model.import_transformers import import_compressed_tensors
from rayqd.model.load import device, load_meta_model, load_tokenizer, torch_dtype
from rayqd.model.model_class import auto_class
from rayqd.model.source_weights import read_stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_kind(directory: Path) -> Kind:
    """Return what kind of export `directory` is. Raises ModelError when it is none."""
    if next(directory.glob("*.gguf"), None) is not None:
        return "gguf"
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory} is no export of rayqd's: {error}") from error
    if is_mlx(config):
        return "mlx"
    return parse_kind(config.get("quantization_config", {}).get("quant_method", "none"))


def is_export(directory: Path) -> bool:
    """Return whether `load_export` is what loads `directory`: it is one of the kinds that rayqd writes."""
    try:
        return read_kind(directory) in KINDS
    except (ModelError, ConfigError):
        return False


def load_export(
    directory: Path,
    dtype: str,
    *,
    dense: bool = True,
    attention: str | None = None,
    on: torch.device | None = None,
    is_checked: bool = True,
) -> PreTrainedModel:
    """Load the model as transformers does, on this process's device or `on`. Raises ModelError when it does not load.

    `dense` unpacks bitsandbytes' layers, which otherwise compute with their own kernels; GPTQ's, AWQ's and MLX's always
    are, as transformers computes with them by other packages alone. Weights that are not what rayqd wrote are refused,
    unless not `is_checked`, for who compares them himself.
    `attention` is one of transformers'
    implementations, instead of the one that rayqd runs the model with.
    """
    kind, where = read_kind(directory), on or device()
    if is_checked:
        check_export(directory)
    try:
        with quiet_libraries(), _in_this_process_alone():
            model = _load(directory, kind, dtype, attention)
            model.eval().requires_grad_(False)
            model.to(where)  # pyright: ignore[reportArgumentType]
            if kind == "bitsandbytes" and dense:
                model = model.dequantize(dtype=torch_dtype(dtype))
            elif kind == "compressed-tensors":
                with torch.no_grad():  # the first call of the whole model unpacks its weights
                    model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=where), use_cache=False)
    except Exception as error:  # whatever its code raises on layers that it does not take packed
        raise ModelError(f"transformers cannot load {directory}: {type(error).__name__}: {error}") from error
    return cast(Any, model)


@contextmanager
def _in_this_process_alone() -> Iterator[None]:
    """Hide torch's process group: compressed-tensors shares the unpacking among workers, and would wait for them."""
    with patch("torch.distributed.is_initialized", return_value=False):
        yield


def _load(directory: Path, kind: Kind, dtype: str, attention: str | None) -> Any:
    from transformers import AutoConfig, GgufConfig

    if kind in ("gptq", "awq", "mlx"):
        return load_unpacked(directory, kind, dtype=torch_dtype(dtype), attention=attention)
    if kind == "gguf":
        from rayqd.export.gguf_read import load_gguf, transformers_reads

        file = next(directory.glob("*.gguf"))
        if not transformers_reads(file):
            return load_gguf(file, dtype=torch_dtype(dtype), attention=attention)
    if kind == "compressed-tensors":
        import_compressed_tensors()
    files = {} if kind != "gguf" else {"gguf_file": next(directory.glob("*.gguf")).name}
    config = AutoConfig.from_pretrained(directory, **files)
    return auto_class(config).from_pretrained(
        directory,
        dtype=torch_dtype(dtype),
        attn_implementation=attention or attention_of(config),
        **files,
        **({"quantization_config": GgufConfig(dequantize=True)} if files else {}),
    )


def read_quantized_model(directory: Path, config: Config) -> QuantizedModel:
    """Read a compressed-tensors or bitsandbytes export of the run that `config` describes."""
    from transformers import AutoConfig, GenerationConfig

    kind = read_kind(directory)
    if kind not in ("compressed-tensors", "bitsandbytes"):
        raise ModelError(f"{directory} is {kind}, from which nothing else is made")
    check_export(directory)
    quantized = (compressed_tensors if kind == "compressed-tensors" else bitsandbytes).read_quantized(directory)
    model_config = AutoConfig.from_pretrained(directory)
    delattr(model_config, "quantization_config")
    has_generation = (directory / "generation_config.json").is_file()
    dense, names = _read_dense(directory, set(quantized)), match_export(directory, quantized)
    plain = load_meta_model(directory)
    head = find_exported_head(plain, names, quantized, dense, config)
    if head is not None:
        quantized = {name: weight for name, weight in quantized.items() if name != head.layer}
    aliases = find_aliases(names, quantized)
    return QuantizedModel(
        config=model_config,
        generation_config=GenerationConfig.from_pretrained(directory) if has_generation else None,
        dense={name: tensor for name, tensor in dense.items() if name not in names.unused},
        quantized=quantized,
        quant=config.quant,
        dtype=torch_dtype(config.model.dtype),
        tokenizer=load_tokenizer(directory),
        source=directory,
        carried={name: stored for name, stored in read_stored_tensors(directory).items() if name in names.unused},
        aliases=aliases,
        dense_layers=find_dense_layers(plain, names, aliases, dense, {}),
        head=head,
    )


def _read_dense(directory: Path, quantized: set[str]) -> dict[str, Tensor]:
    dense: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with cast(Any, safe_open)(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                layer, separator, _ = name.rpartition(".weight")
                if not (separator and layer in quantized):
                    dense[name] = tensors.get_tensor(name)
    return dense
