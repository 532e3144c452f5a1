"""The tensors of a checkpoint's files, and which parameter of the model each of them becomes.

transformers renames tensors while it loads, stacks some and splits others, and drops what no module asks for. An export
says all of it under the names of the source again, which are the ones that every reader knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import safe_open
from torch import Tensor

from rayqd.model.weight_index import SINGLE, indexed_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies on disk."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors calls it, BF16

    @property
    def num_bytes(self) -> int:
        """Return its size."""
        bits = int("".join(c for c in self.dtype.partition("_")[0] if c.isdigit()) or 8)  # BOOL is a byte
        return math.prod(self.shape) * bits // 8

    def read(self) -> Tensor:
        """Return the tensor itself, on the CPU, in its own dtype. Raises OSError and SafetensorError."""
        with cast(Any, safe_open)(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceNames:
    """How the names of a checkpoint's tensors and those of the model's state dict belong together."""

    renamed: dict[str, str]  # the model's name to the checkpoint's, where a tensor stays as it is
    converted: dict[str, list[str]]  # the model's name to all that it is made of, where tensors are stacked or split
    unused: list[str]  # of the checkpoint, what no module asks for
    missing: list[str]  # of the model's parameters, what the checkpoint has not

    def source_name(self, name: str) -> str:
        """Return what the checkpoint calls the model's tensor `name`; the same where it has none of it."""
        return self.renamed.get(name, name)


def weight_files(directory: Path) -> list[Path]:
    """Return the files that transformers loads: the one file, or those of the index, or all there are.

    Raises ModelError where the index names files of another place.
    """
    single = directory / SINGLE
    if single.is_file():
        return [single]
    return indexed_files(directory) or sorted(directory.glob("*.safetensors"))


def read_stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Read names, shapes and dtypes of a checkpoint's tensors, and no values. Raises OSError and SafetensorError."""
    found: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        with cast(Any, safe_open)(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                part = tensors.get_slice(name)
                shape, dtype = tuple(part.get_shape()), str(part.get_dtype())
                found[name] = StoredTensor(name=name, file=file, shape=shape, dtype=dtype)
    return found


def match_names(model: PreTrainedModel, names: Iterable[str]) -> SourceNames:
    """Find what each of a checkpoint's `names` becomes in `model`, which may be on the meta device.

    By transformers' own renaming, in the order of its loader (`convert_and_load_state_dict_in_model`).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state: Any = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    matched = SourceNames(renamed={}, converted={}, unused=[], missing=[])
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        if target not in state:
            matched.unused.append(name)
        elif pattern is None:
            matched.renamed[target] = name
        else:
            first, *others = by_pattern[pattern].target_patterns
            for each in (target, *(target.replace(first, other) for other in others)):
                matched.converted.setdefault(each, []).append(name)
    found = matched.renamed.keys() | matched.converted.keys()
    matched.missing.extend(_missing(model, {name for name, _ in model.named_parameters()} - found, found))
    return matched


def take_apart(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what transformers would write for `tensors` of `model`: what it stacks while loading is apart again.

    A model that was loaded from 4-bit files has conversions that unpack on the way; those have no way back.
    """
    from transformers.core_model_loading import revert_weight_conversion

    conversions = vars(model).pop("_weight_conversions", None)
    unpacks = getattr(model, "hf_quantizer", None) is not None
    try:
        if conversions is not None and not unpacks:
            model._weight_conversions = conversions  # pyright: ignore[reportPrivateUsage]
        return revert_weight_conversion(model, dict(tensors))
    finally:
        if conversions is not None:
            model._weight_conversions = conversions  # pyright: ignore[reportPrivateUsage]


def _missing(model: PreTrainedModel, absent: set[str], found: set[str]) -> list[str]:
    """Return of `absent` what neither is tied to something `found` nor may be absent."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    groups = [{source, *(target for target, of in tied.items() if of == source)} for source in set(tied.values())]
    covered = {name for group in groups if group & found for name in group}
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return sorted(n for n in absent - covered if not any(re.search(pattern, n) for pattern in ignored))
