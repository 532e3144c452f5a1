"""An adapter's product, s·BA. Shapes: W is [N, K], A is [r, K], B is [N, r]; M rows of input."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LowRank(NamedTuple):
    """What an adapter adds to a weight."""

    a: Tensor  # [r, K]
    b: Tensor  # [N, r]
    scaling: float  # s = alpha / r

    def product(self) -> Tensor:
        """s·BA in float32, [N, K]; s is multiplied in first, so that adding W is one rounding."""
        return (self.scaling * self.b.float()) @ self.a.float()

    def gradients_of_weight(self, grad_weight: Tensor) -> tuple[Tensor, Tensor]:
        """dA = s·BᵀG and dB = s·GAᵀ, from G, [N, K]; the products run in its dtype."""
        a, b, scaling = self
        grad_a = b.to(grad_weight.dtype).mT @ grad_weight
        grad_b = grad_weight @ a.to(grad_weight.dtype).mT
        return scaling * grad_a.to(a.dtype), scaling * grad_b.to(b.dtype)

    def gradients(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The same where G = dYᵀX as a whole, by way of [M, r]: dA = s·(dY·B)ᵀX and dB = s·dYᵀ(XAᵀ)."""
        a, b, scaling = self
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_a = (grad @ b.to(grad.dtype)).mT @ x
        grad_b = grad.mT @ (x @ a.to(x.dtype).mT)
        return scaling * grad_a.to(a.dtype), scaling * grad_b.to(b.dtype)
