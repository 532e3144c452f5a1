"""Whether a checkpoint's files hold the model that its config.json describes: what is missing, too many, or untrue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from rayqd.errors import ModelError
from rayqd.model.source_weights import SourceNames, StoredTensor, match_names, read_stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUM_NAMED = 3


def check_weights(model: PreTrainedModel, directory: Path) -> str:
    """Check the files of `directory`, of which `model` has the shapes alone; return a line on weights nobody loads.

    Raises ModelError where a weight is missing, which transformers would make up; where config.json says that the head
    is the embedding, and the files hold another head; and where nothing can be learnt through the head.
    """
    stored = read_stored_tensors(directory)
    names = match_names(model, stored)
    if names.missing:
        raise ModelError(
            f"{directory} has no {_some(names.missing)}, which {type(model).__name__} needs: "
            "it is not all of the model, or not this one; download it again"
        )
    _check_tied(model, names, stored, directory)
    _check_head(model, names, stored, directory)
    return _describe_unused(model, names, stored)


def _check_tied(
    model: PreTrainedModel, names: SourceNames, stored: Mapping[str, StoredTensor], directory: Path
) -> None:
    tied = cast("Mapping[str, str] | None", getattr(model, "all_tied_weights_keys", None)) or {}
    for target, of in tied.items():
        both = [stored[names.renamed[name]] for name in (target, of) if name in names.renamed]
        if len(both) == 2 and (both[0].shape != both[1].shape or not torch.equal(both[0].read(), both[1].read())):
            raise ModelError(
                f"{directory}: config.json says that {both[0].name} is {both[1].name} (tie_word_embeddings), and the "
                'files hold another one: say "tie_word_embeddings": false in config.json, or take the tensor out'
            )


def _check_head(
    model: PreTrainedModel, names: SourceNames, stored: Mapping[str, StoredTensor], directory: Path
) -> None:
    """Check the values of the output head, where the files have it as it is."""
    tied = cast("Mapping[str, str] | None", getattr(model, "all_tied_weights_keys", None)) or {}
    head = cast("nn.Module | None", model.get_output_embeddings())  # pyright: ignore[reportUnknownMemberType]
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
    found = [name for name, module in modules if module is head]
    weights = [each for name in found for each in (f"{name}.weight", tied.get(f"{name}.weight"))]
    kept = [names.renamed[name] for name in weights if name in names.renamed]
    if not kept:
        return
    values = stored[kept[0]].read()
    if not bool(values.isfinite().all()):
        raise ModelError(f"{directory}: the output head {kept[0]} has infinite values or none (nan): take another one")
    if not bool(values.any()):
        raise ModelError(f"{directory}: the output head {kept[0]} is all zeros, and nothing is learnt through it")


def _describe_unused(model: PreTrainedModel, names: SourceNames, stored: Mapping[str, StoredTensor]) -> str:
    if not names.unused:
        return ""
    num_bytes = sum(stored[name].num_bytes for name in names.unused)
    what = "weight" if len(names.unused) == 1 else "weights"
    return (
        f"{len(names.unused)} {what} of {num_bytes / 1e6:,.1f} MB that {type(model).__name__} does not load "
        f"({_some(names.unused)}): untrained, carried into the export as they are"
    )


def _some(names: Sequence[str]) -> str:
    left = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {left} more" if left > 0 else "")
