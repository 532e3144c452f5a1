"""What of a multimodal model text does not go through: towers for images and sound, and their projectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import nn


def text_tower(model: nn.Module) -> nn.Module:
    """Return the language model of a multimodal model, without the head; of any other its base model."""
    whole = cast(Any, model)
    return cast(nn.Module, whole.get_decoder() if is_multimodal(model) else whole.base_model)


def is_multimodal(model: nn.Module) -> bool:
    """Return whether the model's configuration has one for its text beside others."""
    config = getattr(model, "config", None)
    return hasattr(config, "get_text_config") and cast(Any, config).get_text_config() is not config


def find_towers(model: nn.Module) -> Callable[[str], bool]:
    """Return a function that says whether a module or tensor of that name is outside language model and head."""
    if not is_multimodal(model):
        return lambda name: False
    inside = (text_tower(model), cast(Any, model).get_output_embeddings())
    modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))
    prefixes = tuple(f"{name}." for name, module in modules if any(module is each for each in inside))
    return lambda name: not f"{name}.".startswith(prefixes)
