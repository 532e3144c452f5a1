"""A model's tensors under the names, and in the shapes, of the checkpoint that it was loaded from."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from rayqd.model.load import load_meta_model
from rayqd.model.source_weights import SourceNames, StoredTensor, match_names, read_stored_tensors, take_apart
from rayqd.quant import Quantized
from rayqd.quant.routers import find_routers
from rayqd.quant.towers import find_towers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedAsSource:
    """All tensors of an export by the names of its source."""

    dense: dict[str, Tensor]
    quantized: dict[str, Quantized]
    carried: dict[str, StoredTensor]  # what no module asked for, and what text does not go through
    aliases: list[str]  # the quantized layers as transformers calls them
    dense_layers: list[str]  # as the source and as transformers calls them
    is_tied: bool
    names: SourceNames


def name_as_source(
    model: PreTrainedModel, source: Path, dense: Mapping[str, Tensor], quantized: Mapping[str, Quantized]
) -> NamedAsSource:
    """Name `dense` and `quantized`, which have the names of `model`, as `source` does from which `model` was loaded.

    What transformers stacks while it loads is taken apart again. Tied tensors and the weights of quantized layers are
    left out of `dense`.
    """
    stored = read_stored_tensors(source)
    plain = load_meta_model(source)
    names = match_names(plain, stored)
    tied = _tied_names(model)
    is_tower = find_towers(plain)
    left_out = {f"{layer}.weight" for layer in quantized} | tied | {name for name in dense if is_tower(name)}
    to_store = to_source_names(model, {name: t for name, t in dense.items() if name not in left_out}, names)
    carried = {name: stored[name] for name in [*names.unused, *_sources(names, is_tower)]}
    return NamedAsSource(
        dense=to_store,
        quantized={layer_source_name(names, layer): weight for layer, weight in quantized.items()},
        carried=carried,
        aliases=list(quantized),
        dense_layers=find_dense_layers(plain, names, quantized, to_store, carried),
        is_tied=bool(tied) or not getattr(plain.config, "tie_word_embeddings", False),
        names=names,
    )


def match_export(directory: Path, quantized: Iterable[str]) -> SourceNames:
    """Find what the tensors of an export become in the model of its config.json; `quantized` are its layers' names."""
    packed = tuple(f"{layer}." for layer in quantized)
    stored = [name for name in read_stored_tensors(directory) if not name.startswith(packed) or name.endswith(".bias")]
    return match_names(load_meta_model(directory), [*stored, *(f"{prefix}weight" for prefix in packed)])


def find_aliases(names: SourceNames, quantized: Container[str]) -> list[str]:
    """Return what transformers calls the `quantized` layers, which have the source's names."""
    layers = [name.removesuffix(".weight") for name in names.renamed if name.endswith(".weight")]
    return [layer for layer in layers if layer_source_name(names, layer) in quantized]


def to_source_names(model: PreTrainedModel, tensors: Mapping[str, Tensor], names: SourceNames) -> dict[str, Tensor]:
    """Return tensors of `model` as the source has them: what transformers stacks while loading is apart again."""
    as_loaded = {names.source_name(name): t for name, t in tensors.items() if name not in names.converted}
    converted = {name: tensor for name, tensor in tensors.items() if name in names.converted}
    return as_loaded | take_apart(model, converted) if converted else as_loaded


def find_dense_layers(
    plain: PreTrainedModel,
    names: SourceNames,
    quantized: Container[str],
    dense: Mapping[str, Tensor],
    carried: Mapping[str, StoredTensor],
) -> list[str]:
    """Return the linear layers that are not quantized, and routers, as the source and as transformers calls them.

    Of what the source has in another form, and of what no module asks for, every matrix may be one.
    """
    known = {names.source_name(name) for name in plain.state_dict()}
    found: list[str] = []
    routers = find_routers(plain)
    for layer, module in plain.named_modules():
        if (isinstance(module, nn.Linear) or layer in routers) and layer not in quantized:
            found += [layer_source_name(names, layer), layer]
    found += [_module(name) for name, tensor in dense.items() if tensor.dim() == 2 and name not in known]
    found += [_module(name) for name, tensor in carried.items() if len(tensor.shape) > 1 and name not in known]
    return list(dict.fromkeys(found))


def layer_source_name(names: SourceNames, layer: str) -> str:
    """Return what the source calls the linear layer `layer`; a layer that it stores in another form keeps its name."""
    return names.source_name(f"{layer}.weight").removesuffix(".weight")


def _tied_names(model: PreTrainedModel) -> set[str]:
    """Return the parameters that are another one. Where a checkpoint has both, and they differ, there are none."""
    tied = cast("Mapping[str, str] | None", getattr(model, "all_tied_weights_keys", None))
    return set(tied or {})


def _sources(names: SourceNames, wanted: Callable[[str], bool]) -> list[str]:
    """Return what the source has for the `wanted` tensors of the model."""
    renamed = [source for name, source in names.renamed.items() if wanted(name)]
    return [*renamed, *(source for name, parts in names.converted.items() if wanted(name) for source in parts)]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
