"""What transformers computes by itself of a checkpoint: each row alone, eager attention, float32. Nothing of rayqd's.

Shapes: L tokens, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def load_plain(directory: Path) -> Any:
    """Load the checkpoint in `directory`, with 4-bit weights or without."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def plain_logits(directory: Path, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits [L, V] of each row of ids [L], read alone; shorter rows first, as some rotary embeddings
    remember the longest row that they have seen.
    """
    model = load_plain(directory)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    read = {i: model(input_ids=rows[i][None], use_cache=False).logits[0].double() for i in order}
    return [read[i] for i in range(len(rows))]


def plain_kl(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> float:
    """Return KL(teacher ‖ student) of logits, in nats a row of them."""
    p, q = (torch.cat(list(parts)).log_softmax(-1) for parts in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())
