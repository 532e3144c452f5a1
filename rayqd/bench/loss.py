"""`rayqd bench loss`: the divergence from hidden states, with its gradient, beside the products it cannot avoid.

And beside TRL and Liger on the same tensors, where they are installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rayqd.bench.peers import MeanDivergence, installed_peers
from rayqd.bench.timing import Timing, measure
from rayqd.losses import chunked_generalized_jsd
from rayqd.losses.rows import chunk_size, slices
from rayqd.model.load import device, torch_dtype

PRODUCTS = "three products alone"
OURS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTiming:
    arm: str
    timing: Timing
    extra_bytes: int | None  # above what the inputs take; None on a CPU


def bench_loss(
    *, num_tokens: int, vocab_size: int, width: int, dtype: str, betas: tuple[float, ...], repeats: int
) -> Iterator[LossTiming]:
    """The products, the loss at each beta, and the peers'. Forward and backward, the head frozen, as in the learner."""
    where = device()
    torch.manual_seed(0)
    head = (torch.randn(vocab_size, width, device=where) * width**-0.5).to(torch_dtype(dtype))
    student = torch.randn(num_tokens, width, device=where).to(head.dtype).requires_grad_(True)
    teacher = (student.detach() + 0.3 * torch.randn(num_tokens, width, device=where)).to(head.dtype)
    held = torch.cuda.memory_allocated(where) if where.type == "cuda" else 0

    def products() -> None:
        size = chunk_size(None, vocab_size, 2 * head.element_size(), where)
        for rows in slices(num_tokens, size):
            logits = student.detach()[rows] @ head.mT
            torch.mm(teacher[rows], head.mT, out=logits)
            torch.mm(logits, head)

    def step(mean_divergence: MeanDivergence, beta: float) -> None:
        student.grad = None
        mean_divergence(student, head, teacher, head, beta).backward()

    timing = measure(products, where, repeats=repeats)
    yield LossTiming(arm=PRODUCTS, timing=timing, extra_bytes=_above(timing, held))
    for name, mean_divergence in [(OURS, _ours), *installed_peers()]:
        for beta in betas:
            timing = measure(lambda f=mean_divergence, beta=beta: step(f, beta), where, repeats=repeats)
            yield LossTiming(arm=f"{name}, beta {beta:g}", timing=timing, extra_bytes=_above(timing, held))


def _ours(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, beta: float) -> Tensor:
    return chunked_generalized_jsd(student, head, teacher, teacher_head, beta=beta).mean()


def _above(timing: Timing, held: int) -> int | None:
    return None if timing.peak_bytes is None else timing.peak_bytes - held
