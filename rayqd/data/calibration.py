"""The token sequences that GPTQ, AWQ and AutoRound are calibrated on: entire training rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rayqd.types import Example, IntArray


def calibration_sequences(examples: Iterable[Example], num_tokens: int) -> list[IntArray]:
    """Return prompt and completion of the first examples that together reach `num_tokens`."""
    sequences: list[IntArray] = []
    total = 0
    for example in examples:
        if total >= num_tokens:
            break
        sequences.append(np.concatenate([example.prompt_ids, example.completion_ids]))
        total += len(sequences[-1])
    return sequences
