"""The same divergence as other libraries compute it, where they are installed: for `rayqd bench loss` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# student hidden [T, d], its head [V, d], teacher hidden [T, D], its head [V, D], beta -> mean loss, differentiable
MeanDivergence = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def installed_peers() -> Iterator[tuple[str, MeanDivergence]]:
    """Yield name and function of each peer that this environment has in a version that we know how to call."""
    if _has("trl.kernels.chunked_divergence"):
        yield "TRL, chunked divergence", _trl
    if _has("liger_kernel.chunked_loss.jsd_loss"):
        yield "Liger, fused linear JSD", _liger


def _trl(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, beta: float) -> Tensor:
    function: Any = import_module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction
    return function.apply(student, head, None, teacher, teacher_head, None, beta)[0].mean()


def _liger(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, beta: float) -> Tensor:
    """Compute the gradient of the head, too, which cannot be turned off. Chunks are compiled on a GPU alone."""
    module: Any = import_module("liger_kernel.chunked_loss.jsd_loss")
    loss = module.LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=student.is_cuda
    )
    labels = torch.zeros(len(student), dtype=torch.long, device=student.device)
    return loss(student, head, teacher, teacher_head, labels)


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False
