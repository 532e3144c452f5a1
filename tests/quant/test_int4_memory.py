"""Rounding leaves a weight's memory to its owner: FSDP frees it between two layers."""

import torch

from rayqd.config.sections import QuantConfig
from rayqd.model.fake_quantize import fake_quantize
from rayqd.quant import make_grid


def test_the_memory_of_a_rounded_weight_can_be_freed() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.randn(64, 128, dtype=dtype)
        fake_quantize(weight, None, make_grid(QuantConfig(group_size=32), torch.bfloat16))
        weight.untyped_storage().resize_(0)  # which raises where an array of numpy's shares it
        assert weight.untyped_storage().size() == 0
