"""Have Numba compile rayqd's kernels for this CPU, and keep them where every run finds them; takes seconds, once."""

import torch

from rayqd.config.sections import QuantConfig
from rayqd.model.fake_quantize import fake_quantize_sum
from rayqd.quant import make_grid
from rayqd.quant.gptq import gptq
from rayqd.quant.numba_kernels import FEWEST_WEIGHTS

grid = make_grid(QuantConfig(group_size=32), torch.bfloat16)
weight = torch.ones(FEWEST_WEIGHTS // 32, 32)
fake_quantize_sum(gptq(weight, torch.eye(32), grid), None, grid)  # pyright: ignore[reportArgumentType]
