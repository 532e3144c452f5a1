"""Two numbers below 16 in a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import UInt8


def join(*, low: UInt8[Tensor, "N J"], high: UInt8[Tensor, "N J"]) -> UInt8[Tensor, "N J"]:
    return low | (high << 4)


def split(octets: UInt8[Tensor, "N J"]) -> tuple[UInt8[Tensor, "N J"], UInt8[Tensor, "N J"]]:
    """The low and the high nibbles."""
    return octets & 15, octets >> 4
