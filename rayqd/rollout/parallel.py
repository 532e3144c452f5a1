"""How an engine divides a student's layers among its GPUs, and whether that comes out even."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.quant import quantizable_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel

Side = Literal["in", "out"]


def check_tensor_parallel(model: PreTrainedModel, config: Config) -> None:
    """Raise ConfigError, with the numbers that would do, where `rollout.tensor_parallel` divides a layer unevenly.

    `model` may be on the meta device.
    """
    count = config.rollout.tensor_parallel
    if count == 1 or not config.is_on_policy:
        return
    sizes = _divided_sizes(model, config)
    uneven = next(((what, size) for what, size in sizes.items() if size % count), None)
    if uneven is not None:
        what, size = uneven
        even = [n for n in range(1, max(sizes.values()) + 1) if not any(other % n for other in sizes.values())]
        raise ConfigError(
            f"rollout.tensor_parallel={count} does not divide {what} ({size}): take {_format_or(even)} for this model"
        )


def divided_sides(model: PreTrainedModel, name: str) -> tuple[Side, ...]:
    """Return the side of a linear layer that an engine divides; both where the model's class does not say."""
    plan = (
        cast("Mapping[str, str] | None", getattr(cast(Any, model.config).get_text_config(), "base_model_tp_plan", None))
        or {}
    )
    for pattern, style in plan.items():
        if fnmatchcase(name, f"*{pattern}"):
            if "colwise" in style:
                return ("out",)
            if "rowwise" in style:
                return ("in",)
    return ("in", "out")


def _divided_sizes(model: PreTrainedModel, config: Config) -> dict[str, int]:
    """Return what is divided, in words, and its size."""
    text = cast(Any, model.config).get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    sizes = {"its attention heads": int(heads)} if heads else {}
    for name, linear in quantizable_layers(model, config.quant).items():
        for side in divided_sides(model, name):
            size = linear.in_features if side == "in" else linear.out_features
            sizes.setdefault(f"the {'inputs' if side == 'in' else 'outputs'} of {name}", size)
    return sizes


def _format_or(numbers: list[int]) -> str:
    *first, last = map(str, numbers[:8])
    return f"{', '.join(first)} or {last}" if first else last
