"""What a student writes and how far it is there from its teacher, each text alone, by transformers' own computation."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayqd.evals.writing import Writing
from rayqd.model.load import load_model


def moved(directory: Path, distance: float = 0.05) -> Any:
    """A student: the teacher with other weights."""
    model = load_model(directory, "float32")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * distance)
    return model


def eager(directory: Path, model: Any) -> Any:
    from transformers import AutoModelForCausalLM

    copy = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    copy.load_state_dict(model.state_dict())
    return copy


@torch.no_grad()
def greedy(model: Any, prompt: Any, writing: Writing) -> list[int]:
    """The likeliest token after the whole text, again and again, without a cache."""
    ids = prompt.tolist()
    for _ in range(writing.max_new_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in writing.ends:
            break
    return ids[len(prompt) :]


@torch.no_grad()
def sampled(model: Any, prompt: Any, seed: tuple[int, ...], writing: Writing) -> list[int]:
    """The id at which the distribution after the whole text first exceeds the row's next number, again and again."""
    ids = prompt.tolist()
    for uniform in np.random.default_rng(seed).random(writing.max_new_tokens):
        probabilities = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).tolist()
        ids.append(next(i for i, reached in enumerate(accumulate(probabilities)) if reached > uniform))
        if ids[-1] in writing.ends:
            break
    return ids[len(prompt) :]


@torch.no_grad()
def kl_at(teacher: Any, student: Any, prompt: Any, completion: Any) -> list[float]:
    ids = torch.tensor([[*prompt.tolist(), *completion.tolist()]])
    q, p = (m(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1) for m in (teacher, student))
    return (q.exp() * (q - p)).sum(-1).tolist()


@torch.no_grad()
def agree_at(teacher: Any, student: Any, prompt: Any, completion: Any) -> int:
    ids = torch.tensor([[*prompt.tolist(), *completion.tolist()]])
    first, second = (m(ids).logits[0, len(prompt) - 1 : -1].argmax(-1) for m in (teacher, student))
    return int((first == second).sum())
