"""A model that brings its own code, through a run: learner, teacher and vLLM are processes that import it anew."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from rayqd.commands.distill import distill

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


class TheirConfig(LlamaConfig):
    model_type = "theirs_on_ray"


class TheirBody(LlamaModel):
    config_class = TheirConfig


class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig
"""
AUTO_MAP = {
    "AutoConfig": "modeling_theirs.TheirConfig",
    "AutoModel": "modeling_theirs.TheirBody",  # of which vLLM makes its own
    "AutoModelForCausalLM": "modeling_theirs.TheirModel",  # whose name vLLM alone would take for an embedding's
}


@pytest.fixture
def source(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny Llama, as one that only its own code can run."""
    directory = shutil.copytree(tiny_model, tmp_path / "theirs")
    values = json.loads((directory / "config.json").read_text())
    values |= {"model_type": "theirs_on_ray", "architectures": ["TheirModel"], "auto_map": AUTO_MAP}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "modeling_theirs.py").write_text(CODE)
    return directory


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.vllm
def test_vllm_writes_with_it_and_the_export_brings_it_along(source: Path, tiny_config: Any) -> None:
    """Half of the sequences are the student's own, so that both ways of a sequence are gone."""
    model = {"name": str(source), "trust_remote_code": True}
    output = io.StringIO()
    result = distill(tiny_config(model=model, learner={"steps": 2}), Console(file=output, width=160))

    steps = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in steps if row["event"] == "step"]
    assert [row["num_on_policy"] for row in steps] == [2, 2]
    assert steps[0]["engine_error"] < 0.1  # vLLM's log-probabilities are the learner's
    assert "rollout-0 ready" in output.getvalue()

    exported: Any = AutoModelForCausalLM.from_pretrained(result.run_dir / "export", trust_remote_code=True)
    assert type(exported).__name__ == "TheirModel"
    assert (result.run_dir / "export" / "modeling_theirs.py").read_text() == CODE
    with torch.no_grad():
        assert exported(input_ids=torch.arange(3, 40)[None]).logits.isfinite().all()
