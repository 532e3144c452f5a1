"""The source's own files with a rounded output head: what an engine starts from that computes with dense weights.

All files are links to the source's, but for those with the head, and with an embedding tied to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.export.initial_checkpoint import initial_directory
from rayqd.files import replace_directory
from rayqd.model.load import load_meta_model, torch_dtype
from rayqd.model.rounded_head import HeadModules, find_head
from rayqd.model.source_weights import StoredTensor, match_names, read_stored_tensors
from rayqd.quant import Quantized
from rayqd.quant.head import HeadGrid, make_head_grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_rounded_checkpoint(directory: Path, config: Config) -> Path:
    """Write the model in `directory` with the head of `quant.head`, once a machine; return where it is cached.

    That is `directory` itself where the head stays dense.
    """
    grid = make_head_grid(config.quant, torch_dtype(config.model.dtype))
    if grid is None:
        return directory
    target = initial_directory(directory, config, "dense")
    if target.is_dir():
        return target
    codes, stored = round_stored_head(directory, grid)
    values = grid.dequantize(codes)
    with replace_directory(target, concurrent=True) as partial:
        _write(directory, partial, {each.name: values for each in stored}, {each.file.name for each in stored})
    return target


def round_stored_head(directory: Path, grid: HeadGrid) -> tuple[Quantized, list[StoredTensor]]:
    """Return codes of the head of the checkpoint in `directory`, and the tensors that are it: it may lie there twice.

    Raises ModelError where there is none.
    """
    model = load_meta_model(directory)
    found = find_head(model)
    own = _stored_head(model, read_stored_tensors(directory), found) if found is not None else []
    if not own:
        raise ModelError(f"{directory} has no output head that can be rounded; leave quant.head out")
    return grid.quantize(own[0].read().to(grid.dtype), name=own[0].name), own


def _stored_head(model: PreTrainedModel, stored: Mapping[str, StoredTensor], found: HeadModules) -> list[StoredTensor]:
    """Return the tensors that are the head, or the embedding tied to it; a checkpoint may hold both."""
    names = match_names(model, stored).renamed
    modules = [found.head, *([found.embedding] if found.embedding else [])]
    return [stored[names[f"{name}.weight"]] for name in modules if f"{name}.weight" in names]


def _write(source: Path, target: Path, changed: Mapping[str, Tensor], files: set[str]) -> None:
    for path in source.iterdir():
        if path.name not in files:
            (target / path.name).symlink_to(path.resolve())
            continue
        tensors = load_file(path)
        for name in tensors.keys() & changed.keys():
            tensors[name] = changed[name].clone()
        save_file(tensors, target / path.name, metadata={"format": "pt"})
