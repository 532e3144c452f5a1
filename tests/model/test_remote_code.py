"""A model that brings its own modeling file: refused unless trusted, and then as exact as any other."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rayqd.commands.data import look_at_data
from rayqd.commands.evaluate import evaluate
from rayqd.commands.generate import generate
from rayqd.commands.quantize import quantize
from rayqd.data import load_run_data
from rayqd.driver.preflight import check
from rayqd.errors import ModelError
from rayqd.model.forward.of_model import mode_of
from rayqd.model.load import context_length, load_model, load_tokenizer
from rayqd.model.remote_code import find_remote_code, is_trusted
from rayqd.model.source import student_directory
from tests.export.small_models import byte_tokenizer, small_model

# A Llama whose logits its own code multiplies, so that only who runs that code gets them right.
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class TheirConfig(LlamaConfig):
    model_type = "theirs"


class TheirModel(LlamaForCausalLM):
    config_class = TheirConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.25
        return output
"""
AUTO_MAP = {"AutoConfig": "modeling_theirs.TheirConfig", "AutoModelForCausalLM": "modeling_theirs.TheirModel"}

# In a process of its own, with transformers alone: logits of each row of ids, in float64.
PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM
rows, result = json.loads(sys.stdin.read()), []
for directory in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, attn_implementation="eager").eval()
    assert type(model).__name__ == "TheirModel", type(model)
    with torch.no_grad():
        result.append([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double() for ids in rows])
torch.save(result, sys.argv[1])
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "theirs"
    model = small_model("llama", tied=False, dtype=torch.float32, max_position_embeddings=256)
    model.get_output_embeddings().weight.data.mul_(100)  # or all ids would be about as likely
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    values = json.loads((directory / "config.json").read_text())
    values |= {"model_type": "theirs", "architectures": ["TheirModel"], "auto_map": AUTO_MAP}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "modeling_theirs.py").write_text(CODE)
    return directory


def config_of(tiny_config: Any, source: Path, *, trusts: bool, **sections: Any) -> Any:
    model = {"name": str(source), "dtype": "float32", "trust_remote_code": trusts}
    return tiny_config(model=model, quant={"group_size": 32, "method": "rtn"}, **sections)


def test_without_trust_one_line_names_the_files_and_the_setting(source: Path, tiny_config: Any) -> None:
    config = config_of(tiny_config, source, trusts=False)
    for refused in (
        lambda: check(config),
        lambda: look_at_data(config, Console(file=io.StringIO())),
        lambda: quantize(config, Console(file=io.StringIO())),
        lambda: generate(config, console=Console(file=io.StringIO())),
        lambda: evaluate(source, config, Console(file=io.StringIO())),
    ):
        with pytest.raises(ModelError) as caught:
            refused()
        assert "is run by code of its own (modeling_theirs.py)" in str(caught.value)
        assert "set model.trust_remote_code = true" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_teacher_s_code_needs_the_setting_too(source: Path, tiny_model: Path, tiny_config: Any) -> None:
    with pytest.raises(ModelError, match=r"set model\.trust_remote_code = true"):
        check(tiny_config(model={"name": str(tiny_model)}, teacher={"name": str(source)}))


def test_with_trust_its_own_code_is_what_runs(source: Path, tiny_config: Any) -> None:
    config = config_of(tiny_config, source, trusts=True)
    model = load_model(student_directory(config), "float32")
    assert type(model).__name__ == "TheirModel"
    assert mode_of(model).head.scale == pytest.approx(0.25)
    assert is_trusted(source)
    off_policy = config_of(tiny_config, source, trusts=True, distill={"lmbda": 0.0})
    assert check(off_policy).forward == {"student": "packed"}


BASE = """
from transformers import LlamaModel


class TheirBase(LlamaModel):
    config_class = TheirConfig
"""


def test_vllm_is_asked_before_the_run_whether_it_can_write_with_that_code(source: Path, tiny_config: Any) -> None:
    config = config_of(tiny_config, source, trusts=True)
    for code, auto_map, reason in (
        (CODE, AUTO_MAP, "auto_map in config.json names no AutoModel"),
        (CODE + BASE, AUTO_MAP | {"AutoModel": "modeling_theirs.TheirBase"}, r"\(scaled by 0\.25\), which vLLM does"),
    ):
        (source / "modeling_theirs.py").write_text(code)
        values = json.loads((source / "config.json").read_text()) | {"auto_map": auto_map}
        (source / "config.json").write_text(json.dumps(values))
        with pytest.raises(ModelError, match=reason) as caught:
            check(config)
        assert str(caught.value).startswith("vLLM, which writes the rollouts, cannot run the code in ")
        assert "distil off-policy (distill.lmbda = 0)" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_code_that_does_not_load_is_one_line(source: Path, tiny_config: Any) -> None:
    (source / "modeling_theirs.py").write_text("import a_package_that_nobody_has_written\n" + CODE)
    with pytest.raises(ModelError, match="its own code does not load: ") as caught:
        student_directory(config_of(tiny_config, source, trusts=True))
    assert "\n" not in str(caught.value)


def test_other_code_than_was_trusted_is_not(source: Path, tiny_config: Any) -> None:
    student_directory(config_of(tiny_config, source, trusts=True))
    (source / "modeling_theirs.py").write_text(CODE.replace("0.25", "0.5"))
    assert not is_trusted(source)


def test_a_tokenizer_s_class_counts_only_where_transformers_has_none(tiny_model: Path, source: Path) -> None:
    assert find_remote_code(tiny_model) == []
    file = source / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text())
    auto_map = {"AutoTokenizer": ["tokenization_theirs.TheirTokenizer", None]}
    file.write_text(json.dumps(tokenizer | {"auto_map": auto_map}))
    assert find_remote_code(source) == ["modeling_theirs.py"]  # its class is one of transformers'
    file.write_text(json.dumps(tokenizer | {"auto_map": auto_map, "tokenizer_class": "TheirTokenizer"}))
    assert find_remote_code(source) == ["modeling_theirs.py", "tokenization_theirs.py"]


@pytest.mark.slow
def test_run_eval_and_transformers_alone_agree_on_the_export(source: Path, tiny_config: Any, tmp_path: Path) -> None:
    config = config_of(tiny_config, source, trusts=True)
    reported = quantize(config, Console(file=io.StringIO())).student.fidelity.kl_to_teacher
    exported = config.run_dir / "export"
    assert (exported / "modeling_theirs.py").read_text() == CODE
    assert json.loads((exported / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert "lm_head.weight" in load_file(exported / "model.safetensors")
    measured = evaluate(config.run_dir, config, Console(file=io.StringIO())).model.kl_to_teacher
    _, heldout = load_run_data(load_tokenizer(source), config, context_length(source))
    rows = [[*map(int, e.prompt_ids), *map(int, e.completion_ids)] for e in heldout.examples]
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "logits"), str(source), str(exported)]
    subprocess.run(command, input=json.dumps(rows), text=True, check=True, capture_output=True)
    teacher, student = torch.load(tmp_path / "logits")
    parts = []
    for example, theirs, ours in zip(heldout.examples, teacher, student, strict=True):
        p, q = (logits[len(example.prompt_ids) - 1 : -1].log_softmax(-1) for logits in (theirs, ours))
        parts.append((p.exp() * (p - q)).sum(-1))
    plain = torch.cat(parts).mean().item()
    assert plain > 1e-3
    assert reported == pytest.approx(plain, abs=1e-4)
    assert measured == pytest.approx(plain, abs=1e-4)
