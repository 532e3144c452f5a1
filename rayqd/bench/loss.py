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
    """One arm: the products, the rows, or a whole loss with its gradient."""

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
    """Measure the products, what the loss does beside them, the loss at each beta, and the peers'.

    Forward and backward, the head frozen, as in the learner. `chunk_tokens` as of `chunked_generalized_jsd`.
    """
    inputs = _Inputs.random(num_tokens, vocab_size, width, dtype, chunk_tokens)
    timing = measure(inputs.multiply, device(), repeats=repeats)
    yield LossTiming(arm=PRODUCTS, timing=timing, extra_bytes=inputs.extra_bytes(timing))
    for beta in betas:
        timing = _measure_rows(inputs, beta, repeats)
        yield LossTiming(
            arm=f"{ROWS}, beta {beta:g}",
            timing=timing,
            extra_bytes=inputs.extra_bytes(timing),
            logit_bytes=inputs.logit_bytes(beta) if device().type == "cuda" else None,
        )

    def ours(student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, beta: float) -> Tensor:
        per_token = chunked_generalized_jsd(student, head, teacher, teacher_head, beta=beta, chunk_tokens=chunk_tokens)
        return per_token.mean()

    for name, divergence in [(OURS, ours), *installed_peers()]:
        for beta in betas:
            timing = measure(lambda f=divergence, beta=beta: inputs.step(f, beta), device(), repeats=repeats)
            yield LossTiming(arm=f"{name}, beta {beta:g}", timing=timing, extra_bytes=inputs.extra_bytes(timing))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    student: Tensor  # [T, d]
    teacher: Tensor  # [T, d]
    head: Tensor  # [V, d], of both
    chunk: int  # tokens whose logits are held at a time
    allocated_bytes: int  # on the GPU before anything is computed

    @classmethod
    def random(cls, num_tokens: int, vocab_size: int, width: int, dtype: str, chunk_tokens: int | None) -> _Inputs:
        torch.manual_seed(0)
        where = device()
        head = (torch.randn(vocab_size, width, device=where) * width**-0.5).to(torch_dtype(dtype))
        student = torch.randn(num_tokens, width, device=where).to(head.dtype).requires_grad_(True)
        teacher = (student.detach() + 0.3 * torch.randn(num_tokens, width, device=where)).to(head.dtype)
        chunk = min(num_tokens, chunk_size(chunk_tokens, vocab_size, 2 * head.element_size(), where, num_tokens))
        allocated = torch.cuda.memory_allocated(where) if where.type == "cuda" else 0
        return cls(student=student, teacher=teacher, head=head, chunk=chunk, allocated_bytes=allocated)

    def multiply(self) -> None:
        """Compute both logits and the gradient of the student's states, a chunk at a time."""
        for rows in slices(len(self.student), self.chunk):
            logits = self.student.detach()[rows] @ self.head.mT
            torch.mm(self.teacher[rows], self.head.mT, out=logits)
            torch.mm(logits, self.head)

    def step(self, divergence: MeanDivergence, beta: float) -> None:
        self.student.grad = None
        divergence(self.student, self.head, self.teacher, self.head, beta).backward()

    def extra_bytes(self, timing: Timing) -> int | None:
        return None if timing.peak_bytes is None else timing.peak_bytes - self.allocated_bytes

    def logit_bytes(self, beta: float) -> int:
        """Count both sides read twice, or thrice where the mixture takes a pass of its own, and the slope written."""
        passes = 5 if beta in (0.0, 1.0) else 7
        return len(self.student) * len(self.head) * self.head.element_size() * passes


def _measure_rows(inputs: _Inputs, beta: float, repeats: int) -> Timing:
    """Measure one chunk as often as there are chunks. That a slope becomes the next time's logits takes no time."""
    chunk, num_tokens = inputs.chunk, len(inputs.student)
    logits, teacher_logits = inputs.student.detach()[:chunk] @ inputs.head.mT, inputs.teacher[:chunk] @ inputs.head.mT

    def work() -> None:
        for rows in slices(num_tokens, chunk):
            num_rows = rows.stop - rows.start
            loss_and_slope_in_place(logits[:num_rows], teacher_logits[:num_rows], beta, 1.0, with_slope=True)

    return measure(work, device(), repeats=repeats)
