"""Whether scales can move from an op to the layers behind it without changing what a decoder layer computes: tried.

Something else may read the same values: a router and experts behind a norm, a second projection in multi-head latent
attention. Trial scales are powers of two, which no rounding sees, so that a right move leaves the layer's outputs as
they are in any dtype, and a wrong one changes them by as much as they are large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rayqd.model.calibration.previous_op import PreviousOp
from rayqd.quant.awq import scale_columns

# Of what the layer adds. Norms that multiply by 1 + weight round in 16 bits, by some thousandths.
_TOLERANCE_IN_16_BITS, _TOLERANCE_IN_32_BITS = 0.02, 1e-3


def is_neutral(
    previous: PreviousOp, linears: Sequence[nn.Linear], layer: nn.Module, compute: Callable[[], Tensor]
) -> bool:
    """Return whether `compute`, what `layer` adds to its inputs, stays the same; all weights are left as they were."""
    before = compute()
    saved = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    width = linears[0].in_features
    exponents = torch.arange(width, device=linears[0].weight.device) % 3 - 1
    scales = previous.round_scales(torch.exp2(exponents.float()))
    previous.divide_outputs(scales)
    for linear in linears:
        linear.weight.copy_(scale_columns(linear.weight, scales))
    change = compute() - before
    for name, tensor in layer.state_dict().items():
        tensor.copy_(saved[name])
    tolerance = _TOLERANCE_IN_32_BITS if linears[0].weight.dtype == torch.float32 else _TOLERANCE_IN_16_BITS
    return bool(change.norm() <= tolerance * before.norm())
