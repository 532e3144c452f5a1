"""A run with a rounded head: what it reports, what `rayqd eval` measures of its export, what transformers computes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM

from rayqd.commands.evaluate import evaluate
from rayqd.commands.quantize import quantize
from rayqd.data import load_run_data
from rayqd.export.load import load_export
from rayqd.model.load import context_length, load_model, load_tokenizer
from tests.export.small_models import byte_tokenizer, small_model

pytestmark = pytest.mark.slow


@torch.no_grad()
def completion_logits(model: Any, example: Any) -> Tensor:
    """Float64, of the positions that predict an answer's tokens."""
    ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0].double()
    return logits[len(example.prompt_ids) - 1 : -1]


@pytest.mark.parametrize("is_tied", [True, False])
def test_three_computations_of_the_kl_agree(is_tied: bool, tmp_path: Path, tiny_config: Any) -> None:
    source = tmp_path / "source"
    model = small_model("llama", tied=is_tied, dtype=torch.float32, max_position_embeddings=256)
    model.get_output_embeddings().weight.data.mul_(10)  # or all ids would be about as likely
    model.save_pretrained(source)
    byte_tokenizer().save_pretrained(source)
    quant = {"group_size": 32, "method": "gptq", "calibration_tokens": 400}

    def run(head: str) -> tuple[Any, float]:
        settings = {**quant, "head": head}
        config = tiny_config(name=head, model={"name": str(source), "dtype": "float32"}, quant=settings)
        return config, quantize(config, Console(file=io.StringIO())).student.fidelity.kl_to_teacher

    config, reported = run("int4")
    measured = evaluate(config.run_dir, config, Console(file=io.StringIO())).model.kl_to_teacher
    _, heldout = load_run_data(load_tokenizer(source), config, context_length(source))
    teacher = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
    exported = AutoModelForCausalLM.from_pretrained(config.run_dir / "export", attn_implementation="eager")
    parts = []
    for example in heldout.examples:
        p, q = (completion_logits(each, example).log_softmax(-1) for each in (teacher, exported))
        parts.append((p.exp() * (p - q)).sum(-1))
    plain = torch.cat(parts).mean().item()
    assert reported == pytest.approx(plain, abs=1e-4)
    assert measured == pytest.approx(plain, abs=1e-4)
    assert reported > run("none")[1] + 1e-3  # the head's rounding is in it
    dense = load_model(source, "float32").get_output_embeddings().weight
    assert not torch.equal(load_export(config.run_dir / "export", "float32").get_output_embeddings().weight, dense)
