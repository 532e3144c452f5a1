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
from rayqd.losses.chunked import loss_and_slope_in_place
from rayqd.losses.rows import chunk_size, slices
from rayqd.model.load import device, torch_dtype

PRODUCTS = "three products alone"
ROWS = "its rows alone"
OURS = "loss"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTiming:
    arm: str
    timing: Timing
    extra_bytes: int | None  # above what the inputs take; None on a CPU
    logit_bytes: int | None = None  # that the GPU's kernel over the rows asks for, where it alone was measured


def bench_loss(
    *,
    num_tokens: int,
    vocab_size: int,
    width: int,
    dtype: str,
    betas: tuple[float, ...],
    repeats: int,
    chunk_tokens: int | None = None,
) -> Iterator[LossTiming]:
    """The products, what the loss does beside them, the loss at each beta, and the peers'.

    Forward and backward, the head frozen, as in the learner. `chunk_tokens` as of `chunked_generalized_jsd`.
    """
    where = device()
    torch.manual_seed(0)
    head = (torch.randn(vocab_size, width, device=where) * width**-0.5).to(torch_dtype(dtype))
    student = torch.randn(num_tokens, width, device=where).to(head.dtype).requires_grad_(True)
    teacher = (student.detach() + 0.3 * torch.randn(num_tokens, width, device=where)).to(head.dtype)
    held = torch.cuda.memory_allocated(where) if where.type == "cuda" else 0

    size = min(num_tokens, chunk_size(chunk_tokens, vocab_size, 2 * head.element_size(), where, num_tokens))

    def products() -> None:
        for rows in slices(num_tokens, size):
            logits = student.detach()[rows] @ head.mT
            torch.mm(teacher[rows], head.mT, out=logits)
            torch.mm(logits, head)

    def rows_alone(beta: float) -> Timing:
        """Over one chunk as often as there are chunks. That a slope becomes the next time's logits takes no time."""
        logits, teacher_logits = student.detach()[:size] @ head.mT, teacher[:size] @ head.mT

        def work() -> None:
            for rows in slices(num_tokens, size):
                num_rows = rows.stop - rows.start
                loss_and_slope_in_place(logits[:num_rows], teacher_logits[:num_rows], beta, 1.0, with_slope=True)

        return measure(work, where, repeats=repeats)

    def ours(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, beta: float) -> Tensor:
        return chunked_generalized_jsd(
            student, head, teacher, teacher_head, beta=beta, chunk_tokens=chunk_tokens
        ).mean()

    def step(mean_divergence: MeanDivergence, beta: float) -> None:
        student.grad = None
        mean_divergence(student, head, teacher, head, beta).backward()

    timing = measure(products, where, repeats=repeats)
    yield LossTiming(arm=PRODUCTS, timing=timing, extra_bytes=_above(timing, held))
    for beta in betas:
        timing = rows_alone(beta)
        # Both sides read twice, or thrice where the mixture takes a pass of its own, and the slope written.
        bytes_of_an_id = head.element_size() * (5 if beta in (0.0, 1.0) else 7)
        yield LossTiming(
            arm=f"{ROWS}, beta {beta:g}",
            timing=timing,
            extra_bytes=_above(timing, held),
            logit_bytes=num_tokens * vocab_size * bytes_of_an_id if where.type == "cuda" else None,
        )
    for name, mean_divergence in [(OURS, ours), *installed_peers()]:
        for beta in betas:
            timing = measure(lambda f=mean_divergence, beta=beta: step(f, beta), where, repeats=repeats)
            yield LossTiming(arm=f"{name}, beta {beta:g}", timing=timing, extra_bytes=_above(timing, held))


def _above(timing: Timing, held: int) -> int | None:
    return None if timing.peak_bytes is None else timing.peak_bytes - held
