"""Output heads whose logits are more than a product: scaled, shifted by a bias, or capped by a tanh.

Shapes: T tokens, V vocabulary, d hidden width. With h a state and W the head's weight

    x = scale · W h + bias,        logits = x, or cap · tanh(x / cap)

of which the gradients with respect to h are scale · Wᵀ (slope · (1 - (logits / cap)²)). A plain product is a tensor [V,
d] alone, and everything here treats it as torch would: no step is added for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from rayqd.losses.rows import row_blocks


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OutputHead:
    """A head whose logits are not the plain product. Slices, lengths, casts and moves are those of its weight."""

    weight: Float[Tensor, "V d"]
    bias: Float[Tensor, " V"] | None = None  # after the scale
    scale: float = 1.0
    cap: float | None = None

    def __len__(self) -> int:
        """Return V."""
        return len(self.weight)

    def __getitem__(self, ids: slice) -> OutputHead:
        """Return the head of some ids; a view."""
        return replace(self, weight=self.weight[ids], bias=None if self.bias is None else self.bias[ids])

    def float(self) -> OutputHead:
        """Return the head in float32."""
        return self.to(torch.float32)

    def to(self, target: Any) -> OutputHead:
        """Return the head on another device or in another dtype."""
        return replace(self, weight=self.weight.to(target), bias=None if self.bias is None else self.bias.to(target))

    def detach(self) -> OutputHead:
        """Return the head without the gradients of its weight."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    @property
    def shape(self) -> torch.Size:
        """Return [V, d]."""
        return self.weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """Return the weight's dtype."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Return where the weight is."""
        return self.weight.device

    @property
    def is_cuda(self) -> bool:
        """Return whether the weight is on a GPU."""
        return self.weight.is_cuda

    def element_size(self) -> int:
        """Return the bytes of one of the weight's numbers."""
        return self.weight.element_size()

    def numel(self) -> int:
        """Return how many numbers the weight has."""
        return self.weight.numel()


Head = Tensor | OutputHead
H = TypeVar("H", bound=Tensor | OutputHead | None)


def as_heads(heads: H | Sequence[H]) -> tuple[H, ...]:
    """Return the heads of several teachers, or that of one, as a tuple."""
    return tuple(cast("Sequence[H]", heads)) if isinstance(heads, list | tuple) else (cast("H", heads),)


def weight_of(head: Head) -> Float[Tensor, "V d"]:
    """Return the weight of a head."""
    return head.weight if isinstance(head, OutputHead) else head


def scale_of(head: Head) -> float:
    """Return what the product of a head and a state is multiplied with."""
    return head.scale if isinstance(head, OutputHead) else 1.0


def logits_of(hidden: Float[Tensor, "T d"], head: Head) -> Float[Tensor, "T V"]:
    """Return the logits of states, in their dtype; differentiable."""
    if not isinstance(head, OutputHead):
        return hidden @ head.t()
    return cap_logits(uncapped_logits(hidden, head), head)


def uncapped_logits(hidden: Float[Tensor, "T d"], head: Head) -> Float[Tensor, "T V"]:
    """Return the logits of states before any cap: scale · h Wᵀ + bias, rounded once."""
    if not isinstance(head, OutputHead):
        return hidden @ head.t()
    bias, beta = (hidden.new_zeros(1), 0) if head.bias is None else (head.bias.detach(), 1)
    return torch.addmm(bias, hidden, head.weight.t(), beta=beta, alpha=head.scale)


def cap_logits(logits: Tensor, head: Head) -> Tensor:
    """Return the logits that the head makes of uncapped ones; differentiable."""
    if not isinstance(head, OutputHead) or head.cap is None:
        return logits
    return (head.cap * torch.tanh(logits.float() / head.cap)).to(logits.dtype)


@torch.no_grad()
def write_logits(
    hidden: Float[Tensor, "T d"], head: Head, out: Float[Tensor, "T V"], *, with_slope: bool = False
) -> Float[Tensor, "T V"] | None:
    """Write the logits of states to `out`, without a gradient.

    Returns d logits / d uncapped logits, 1 - tanh², in the dtype of `out`, where a cap makes it another than 1 and it
    is asked for.
    """
    if not isinstance(head, OutputHead):
        torch.mm(hidden, head.t(), out=out)
        return None
    bias, beta = (hidden.new_zeros(1), 0) if head.bias is None else (head.bias, 1)
    torch.addmm(bias, hidden, head.weight.t(), beta=beta, alpha=head.scale, out=out)
    if head.cap is None:
        return None
    slope = torch.empty_like(out) if with_slope else None
    for rows in row_blocks(len(out), out.shape[1], out.device):  # in float32, or each step would round once more
        tanh = out[rows].float().div(head.cap).tanh_()
        out[rows] = tanh * head.cap
        if slope is not None:
            slope[rows] = tanh.square_().neg_().add_(1.0)
    return slope
