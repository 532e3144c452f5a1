"""An adapter's product, s·BA. Shapes: W is [N, K], A is [r, K], B is [N, r]; M rows of input."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LowRank(NamedTuple):
    """A LoRA adapter of one layer (Hu et al. 2021), without the module around it."""

    a: Tensor  # [r, K]
    b: Tensor  # [N, r]
    scaling: float  # s = alpha / r

    def delta_weight(self) -> Tensor:
        """Return s·BA in float32, [N, K]; s is multiplied in first, so that adding W is one rounding."""
        return (self.scaling * self.b.float()) @ self.a.float()

    def gradients_from_weight(self, grad_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return dA = s·BᵀG and dB = s·GAᵀ from `grad_weight`, G [N, K]; the products run in its dtype."""
        a, b, scaling = self
        grad_a = b.to(grad_weight.dtype).mT @ grad_weight
        grad_b = grad_weight @ a.to(grad_weight.dtype).mT
        return scaling * grad_a.to(a.dtype), scaling * grad_b.to(b.dtype)

    def gradients_from_output(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for G = dYᵀX without making it: dA = s·(dY·B)ᵀX and dB = s·dYᵀ(XAᵀ), by way of [M, r]."""
        a, b, scaling = self
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_a = (grad @ b.to(grad.dtype)).mT @ x
        grad_b = grad.mT @ (x @ a.to(x.dtype).mT)
        return scaling * grad_a.to(a.dtype), scaling * grad_b.to(b.dtype)
