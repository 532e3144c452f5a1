"""How many tokens of a model with layers of its own kind fit in a GPU's memory: measured on two short rows.

Attention and products take memory that follows from their shapes (`model.gpu_memory`). What a recurrent or
convolutional layer takes is its code's secret: Mamba-2 in transformers' own form keeps some megabytes a token. So
where rows are not packed, which is to say where there are such layers, a row goes forward and backward at two lengths;
what a token takes is the difference, and the limit is lowered before the first step where that is too much.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from rayqd.model.forward.of_model import mode_of
from rayqd.model.hidden_states import completion_states
from rayqd.model.out_of_memory import is_out_of_memory, release_memory
from rayqd.model.student import Student
from rayqd.model.token_limit import TokenLimit
from rayqd.types import Rollout

_LENGTHS = 256, 512  # tokens of the rows; recurrent layers go by chunks of 64 to 256
_USABLE = 0.85  # of what is free; the rest is lost between blocks, or the loss's
_MIB, _GIB = 2**20, 2**30


def fit_limit(student: Student, limit: TokenLimit) -> None:
    """Lower `limit`, and say so, to what fits on the student's GPU; do nothing on a CPU or where rows are packed."""
    if not student.head.is_cuda or mode_of(student.model).is_packed or not limit.can_be_lowered:
        return
    lower_to_fit(limit, lambda length: peak_bytes(student, length), free_bytes)


def lower_to_fit(limit: TokenLimit, peak: Callable[[int], int | None], free: Callable[[], int]) -> None:
    """Lower `limit` to what `peak` bytes of a row of some length leave room for, of `free()` bytes.

    `peak` returns None where memory runs out; the limit is then left to whoever runs out of it again.
    """
    short, long = _LENGTHS
    if limit.tokens <= long:
        return
    at_short, at_long = peak(short), peak(long)
    available = free()
    if at_short is None or at_long is None or at_long <= at_short:
        return
    per_token = (at_long - at_short) / (long - short)
    fixed = max(0.0, at_short - per_token * short)
    fitting = int((_USABLE * available - fixed) / per_token)
    if fitting < limit.tokens:
        limit.lower_to(
            max(fitting, short),
            f"a token of this model takes {per_token / _MIB:.1f} MiB in training, and {available / _GIB:.1f} GiB are "
            f"free, too little for {limit.tokens:,} tokens at a time",
        )


def peak_bytes(student: Student, length: int) -> int | None:
    """Return the most bytes that a row of `length` tokens takes at a time, forward and backward; None beyond memory.

    Layers are not compiled for it: that would take longer than the measurement, and less memory.
    """
    device = student.head.device
    ids = np.zeros(length // 2, dtype=np.int32)
    row = Rollout(step=-1, index=0, on_policy=False, prompt_ids=ids, completion_ids=ids, policy_version=None)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with torch.compiler.set_stance("force_eager"):
            states = completion_states(student.model, [row])
            states.backward(torch.zeros_like(states))  # pyright: ignore[reportUnknownMemberType]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        for parameter in student.parameters().values():
            parameter.grad = None
    return torch.cuda.max_memory_allocated(device) - before


def free_bytes() -> int:
    """Return the bytes of the current GPU that this process could still get."""
    release_memory()
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
