"""What every grid does to a weight before its own arithmetic: split rows into groups, refuse inf and nan.

Shapes: N rows (output features), K columns (input features), g weights a group, G = K / g groups a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rayqd.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from jaxtyping import Float


def split_groups(weight: Float[Tensor, "N K"], quant_group_size: int) -> Float[Tensor, "N G g"]:
    """Return the weights of each group in float32. Raises ConfigError where groups of this size do not fill a row."""
    num_columns = weight.shape[-1]
    if num_columns % quant_group_size:
        raise ConfigError(
            f"quant.group_size={quant_group_size} does not divide a weight's {num_columns} input features; "
            "use a divisor of them"
        )
    return weight.to(torch.float32).reshape(weight.shape[0], -1, quant_group_size)


def divide(x: Float[Tensor, "*shape"], number: float) -> Float[Tensor, "*shape"]:
    """Return x / number in float32, rounded as IEEE says on every device.

    Where the divisor is a number, a GPU multiplies by its reciprocal, which rounds twice. In float64 either way is near
    enough: no quotient of two float32 numbers lies so close to where the rounding changes.
    """
    return (x.double() / number).float()


def check_finite(weight: Float[Tensor, "N K"], scales: Float[Tensor, "N G"], *, name: str) -> None:
    """Raise ModelError when a group has no scale; inf and nan in a weight always reach their group's scale."""
    if bool(torch.isfinite(scales).all()):
        return
    num_bad = weight.numel() - int(torch.isfinite(weight).sum())
    if num_bad:
        raise ModelError(
            f"{name} holds {num_bad} values that are inf or nan out of {weight.numel()} and cannot be quantized; "
            "mend the model, or look for the step at which its training diverged"
        )
    dtype = str(scales.dtype).removeprefix("torch.")
    raise ModelError(f"{name} holds values too large for scales in {dtype}; use model.dtype bfloat16 or float32")
