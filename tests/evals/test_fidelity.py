"""Fidelity on held-out rows against float64 log-softmaxes of each row alone, by the models' own eager forward pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rayqd.evals.fidelity import score, student_fidelity
from rayqd.model.load import load_model, output_head
from rayqd.teacher.forward import Teacher
from rayqd.types import Example


def eager_states(directory: Path, model: Any, rows: list[Example]) -> torch.Tensor:
    """The last hidden states at the positions that predict completions, [tokens, d], in float64; weights of `model`."""
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    eager.load_state_dict(model.state_dict())
    parts = []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids.tolist(), *row.completion_ids.tolist()]])
        parts.append(eager.model(ids).last_hidden_state[0, len(row.prompt_ids) - 1 : -1].double())
    return torch.cat(parts)


@pytest.mark.parametrize("num_padding_ids", [0, 16], ids=["heads of one size", "a longer head of the student"])
@torch.no_grad()
def test_all_four_means_are_those_of_float64_softmaxes(
    num_padding_ids: int, tiny_model: Path, make_rollouts: Any
) -> None:
    rollouts = make_rollouts((3, 9), (20, 4), (7, 30), seed=3)
    rows = [Example(row=r.index, prompt_ids=r.prompt_ids, completion_ids=r.completion_ids) for r in rollouts]
    teacher, student = load_model(tiny_model, "float32"), load_model(tiny_model, "float32")
    torch.manual_seed(1)
    for parameter in student.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    head = torch.cat([output_head(student), torch.randn(num_padding_ids, output_head(student).shape[1])])
    measured = student_fidelity(student, head, output_head(teacher), score(rows, Teacher(teacher, 64)), 64)

    teacher_logits = eager_states(tiny_model, teacher, rows) @ output_head(teacher).double().T
    logits = eager_states(tiny_model, student, rows) @ head.double().T
    q, p = teacher_logits.log_softmax(-1), logits[:, : teacher_logits.shape[1]].log_softmax(-1)
    ids = torch.cat([torch.from_numpy(row.completion_ids.astype("int64")) for row in rows])
    nll = -logits.log_softmax(-1).gather(1, ids[:, None]).mean().item()
    assert measured.num_tokens == len(ids)
    assert measured.kl_to_teacher == pytest.approx((q.exp() * (q - p)).sum(-1).mean().item(), rel=1e-5)
    assert measured.total_variation == pytest.approx((p.exp() - q.exp()).abs().sum(-1).mean().item() / 2, rel=1e-5)
    assert measured.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    assert measured.perplexity == pytest.approx(math.exp(nll), rel=1e-5)

    lengths = [len(row.completion_ids) for row in rows]
    by_row = measured.by_row
    assert by_row
    assert by_row.num_tokens == tuple(lengths)
    kl = [part.sum().item() for part in (q.exp() * (q - p)).sum(-1).split(lengths)]
    assert by_row.kl == pytest.approx(kl, rel=1e-5)
    assert by_row.agrees == tuple(part.sum().item() for part in (p.argmax(-1) == q.argmax(-1)).split(lengths))
    assert sum(by_row.nll) == pytest.approx(nll * len(ids), rel=1e-5)
