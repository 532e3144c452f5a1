"""Tensors to bytes and back."""

from __future__ import annotations

import torch
from torch import Tensor

from rayqd.types import WireTensor

_AS_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float8_e4m3fn: torch.uint8}


def to_wire(tensor: Tensor) -> WireTensor:
    """Return the bits of `tensor`, copied to the CPU where it is elsewhere; the shape stays."""
    tensor = tensor.detach().cpu().contiguous()
    bits = tensor.view(_AS_INTEGERS.get(tensor.dtype, tensor.dtype)).numpy()
    return WireTensor(dtype=str(tensor.dtype).removeprefix("torch."), bits=bits)


def from_wire(wire: WireTensor) -> Tensor:
    """Return the tensor, which shares memory with `wire`; that may be read-only: do not write to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.as_tensor(wire.bits)
    return tensor.view(getattr(torch, wire.dtype))
