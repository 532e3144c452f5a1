"""Which of an engine's layers multiply with codes: vLLM's classes decide that themselves, layer by layer."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, cast

from torch import nn


class LayerFormError(Exception):
    """An engine has started with layers that are not in the form that its checkpoint has them in."""


def check_packed(model: nn.Module, num_packed: int) -> None:
    """Raise LayerFormError where the linear layers of vLLM's `model` have fewer than `num_packed` weights as codes.

    Such a layer has found nothing in the checkpoint that it could load, and need not have said so.
    """
    linear = importlib.import_module("vllm.model_executor.layers.linear")
    dense: list[str] = []
    found = 0
    for name, module in cast("Iterable[tuple[str, Any]]", model.named_modules()):
        if isinstance(module, linear.LinearBase):
            if isinstance(module.quant_method, linear.UnquantizedLinearMethod):
                dense.append(name)
            else:
                found += module.input_size * module.output_size
    if found < num_packed:
        shown = f": {', '.join(dense[:2])}{' and more' if len(dense) > 2 else ''}" if dense else ""
        raise LayerFormError(f"it has none of them for {1 - found / num_packed:.0%} of the quantized weights{shown}")
