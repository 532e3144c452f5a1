"""Double quantization (QLoRA, Dettmers et al. 2023, section 3) with the roundings of bitsandbytes' CPU kernels.

The scales less their mean, in blocks of 256, become 8-bit codes of a dynamic map: sign, decimal exponent, fraction
(Dettmers 2015). Shapes: N rows, G groups a row; blocks run over the N·G scales row after row, the last may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from rayqd.quant.grid import NestedScales

if TYPE_CHECKING:
    from jaxtyping import Float

BLOCK_SIZE = 256

# bitsandbytes looks codes up in a table of as many equal steps from -1 to 1, so it rounds to one of these first.
NUM_LOOKUPS = 65536

Function = TypeVar("Function", bound=Callable[..., Any])


def _eager(function: Function) -> Function:
    """Keep a function out of compiled code, so that fake quantization there has the bits that are exported."""
    return cast(Any, torch)._disable_dynamo(function)  # torch.compiler.disable would load the compiler at once, 2 s


@_eager  # a compiled mean adds up in another order
def nest(scales: Float[Tensor, "N G"]) -> NestedScales:
    """Return the 8-bit codes of float32 scales."""
    flat = scales.reshape(-1)
    offset = flat.mean()
    blocks = _blocks(flat - offset)
    absmax = blocks.abs().amax(-1)
    shares = (blocks * (1 / absmax).unsqueeze(-1)).clamp_(-1, 1)
    lookups = ((shares + 1) * 0.5 * (NUM_LOOKUPS - 1) + 0.5).floor_()
    dynamic_map = make_dynamic_map(scales.device)
    midpoints = 0.5 * (dynamic_map[:-1] + dynamic_map[1:])
    codes = torch.bucketize(2 * lookups / (NUM_LOOKUPS - 1) - 1, midpoints, out_int32=True)
    codes = torch.where(absmax.unsqueeze(-1) == 0, 0, codes)
    return NestedScales(codes.to(torch.uint8).reshape(-1)[: len(flat)], absmax, offset)


@_eager  # a compiler may make one rounding of the product and the sum
def unnest(nested: NestedScales, num_rows: int) -> Float[Tensor, "N G"]:
    """Return the float32 scales that the codes stand for; `num_rows` is N."""
    values = _blocks(make_dynamic_map(nested.codes.device)[nested.codes.to(torch.int32)])
    flat = (values * nested.scales.unsqueeze(-1)).reshape(-1)[: len(nested.codes)]
    return (flat + nested.offset).reshape(num_rows, -1)


@cache
def make_dynamic_map(device: torch.device) -> Float[Tensor, " 256"]:
    """Return the values of the 256 codes, ascending: 0, 1, and per decade 2^i midpoints of either sign."""
    values = [0.0, 1.0]
    for i in range(7):
        boundaries = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        means = (boundaries[:-1] + boundaries[1:]) / 2.0
        for sign in (1, -1):
            values += (sign * 10 ** (i - 6) * means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def _blocks(flat: Float[Tensor, " L"]) -> Float[Tensor, "L/256 256"]:
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
