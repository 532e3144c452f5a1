"""What is computed of sequences that have several teachers: of each teacher's together, and put back into their order.

Shapes: C tokens of a sequence that are trained on, T of all sequences, d hidden width of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rayqd.types import ScoredRollout

Compute = Callable[[int, Tensor, Sequence[ScoredRollout]], Tensor]
"""Of a teacher's number, the student's states [T, d] at its sequences' tokens, and these: a value a token, [T, ...]."""


def compute_by_teacher(hidden: Tensor, batch: Sequence[ScoredRollout], compute: Compute) -> Tensor:
    """Return what `compute` does of each teacher's sequences, [T, ...], in the order of `batch`.

    `hidden`: the student's states at all tokens, [T, d]. Sequences of one teacher are computed as they come.
    """
    numbers = [scored.rollout.teacher for scored in batch]
    teachers = sorted(set(numbers))
    if len(teachers) == 1:
        return compute(teachers[0], hidden, batch)
    lengths = [scored.rollout.num_loss_tokens for scored in batch]
    states = hidden.split(lengths)
    parts: dict[int, Tensor] = {}
    for teacher in teachers:
        own = [i for i, number in enumerate(numbers) if number == teacher]
        values = compute(teacher, torch.cat([states[i] for i in own]), [batch[i] for i in own])
        parts |= zip(own, values.split([lengths[i] for i in own]), strict=True)
    return torch.cat([parts[i] for i in range(len(batch))])
