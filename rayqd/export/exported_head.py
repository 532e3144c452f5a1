"""The codes of an output head, found again for an export that is made from another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.export.rounded_checkpoint import round_stored_head
from rayqd.export.source_names import layer_source_name
from rayqd.model.rounded_head import HeadModules, RoundedHead, find_head
from rayqd.model.source import student_directory
from rayqd.model.source_weights import SourceNames
from rayqd.quant import Quantized
from rayqd.quant.head import make_head_grid

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_exported_head(
    plain: PreTrainedModel,
    names: SourceNames,
    quantized: Mapping[str, Quantized],
    dense: Mapping[str, Tensor],
    config: Config,
) -> RoundedHead | None:
    """Return the head of an export with layers `quantized` and tensors `dense`, by the names of its files.

    Of a head that is the embedding an export has values alone. Those of its source are rounded again, which gives the
    same ones. Raises ModelError where they do not.
    """
    found = find_head(plain)
    if config.quant.head == "none" or found is None:
        return None
    own = [name for name in (found.head, found.embedding) if name is not None]
    head, *embedding = (layer_source_name(names, name) for name in own)
    modules = HeadModules(head=head, embedding=embedding[0] if embedding else None)
    if modules.embedding is None:
        return RoundedHead(modules=modules, codes=quantized[head], aliases=tuple(own))
    directory = student_directory(config)
    grid = make_head_grid(config.quant, dense[f"{modules.embedding}.weight"].dtype)
    assert grid is not None
    codes, _ = round_stored_head(directory, grid)
    if not torch.equal(grid.dequantize(codes), dense[f"{modules.embedding}.weight"]):
        raise ModelError(f"the head of {directory} is no longer the one that was rounded: quantize it again")
    return RoundedHead(modules=modules, codes=codes, aliases=tuple(own))
