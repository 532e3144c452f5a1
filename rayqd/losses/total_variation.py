"""The total variation distance between student and teacher, a metric: no gradient.

Shapes: T tokens, V vocabulary, d and D hidden widths of student and teacher.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rayqd.losses.closed_form import MASKED_LOGIT, softmax_and_logsumexp
from rayqd.losses.divergence import check_parameters
from rayqd.losses.rows import chunk_size, row_blocks, slices
from rayqd.losses.shapes import check_logits, check_sides


@torch.no_grad()
def total_variation(
    student_logits: Float[Tensor, "T V"], teacher_logits: Float[Tensor, "T V"], *, temperature: float = 1.0
) -> Float[Tensor, " T"]:
    """sum |p - q| / 2 of student and teacher at each token, in [0, 1], float32, over the full vocabulary; no gradient.

    The chance that two samplers with the best shared randomness disagree, so 1 minus the rate at which speculative
    decoding accepts (Leviathan et al. 2023, corollary 3.6). Both sides' logits are divided by `temperature`; -inf masks
    an id. Raises ConfigError for a temperature that is not positive, ModelError for unequal shapes.
    """
    check_parameters(0.0, temperature)
    check_logits(student_logits, teacher_logits)
    distance = torch.empty(len(student_logits), dtype=torch.float32, device=student_logits.device)
    _fill(distance, student_logits, teacher_logits, temperature)
    return distance


@torch.no_grad()
def chunked_total_variation(
    student_hidden: Float[Tensor, "T d"],
    student_head: Float[Tensor, "V d"],
    teacher_hidden: Float[Tensor, "T D"],
    teacher_head: Float[Tensor, "V D"],
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Float[Tensor, " T"]:
    """`total_variation` of the logits `hidden @ head.T`, of which `chunk_tokens` rows are held at a time; no gradient.

    The products run in the dtype of hidden state and head, all that follows in float32. Raises ConfigError for a
    temperature or chunk_tokens out of range, ModelError for shapes or dtypes that do not fit one another.
    """
    check_parameters(0.0, temperature)
    check_sides(student_hidden, student_head, teacher_hidden, teacher_head)
    num_tokens, vocab_size = len(student_hidden), len(student_head)
    element_size = student_head.element_size() + teacher_head.element_size()
    chunk_tokens = chunk_size(chunk_tokens, vocab_size, element_size, student_head.device)
    distance = torch.empty(num_tokens, dtype=torch.float32, device=student_hidden.device)
    student_buffer = student_hidden.new_empty(min(chunk_tokens, num_tokens), vocab_size)
    teacher_buffer = teacher_hidden.new_empty(min(chunk_tokens, num_tokens), vocab_size)
    for rows in slices(num_tokens, chunk_tokens):
        num_rows = rows.stop - rows.start
        student = torch.mm(student_hidden[rows], student_head.t(), out=student_buffer[:num_rows])
        teacher = torch.mm(teacher_hidden[rows], teacher_head.t(), out=teacher_buffer[:num_rows])
        _fill(distance[rows], student, teacher, temperature)
    return distance


def _fill(distance: Tensor, student: Tensor, teacher: Tensor, temperature: float) -> None:
    """Writes each row's distance into `distance`."""
    for rows in row_blocks(len(student), student.shape[1], student.device):
        p, q = (_probabilities(side[rows], temperature) for side in (student, teacher))
        distance[rows] = p.sub_(q).abs_().sum(-1).mul_(0.5).clamp_(max=1.0)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return softmax_and_logsumexp((logits.float() / temperature).clamp_(min=MASKED_LOGIT))[0]
