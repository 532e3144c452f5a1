"""A student with a rounded head against transformers' forward pass with the same values; its teacher keeps its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from rayqd.config import Config
from rayqd.errors import ConfigError
from rayqd.evals.heldout import Heldout
from rayqd.export.initial_checkpoint import make_initial_checkpoint
from rayqd.export.logits import compute_student_logits
from rayqd.export.rounded_checkpoint import make_rounded_checkpoint
from rayqd.learner.learner import Learner
from rayqd.model.calibration import calibrate
from rayqd.model.load import load_head, load_meta_model, load_model
from rayqd.model.rounded_head import check_head, describe_head
from rayqd.model.student import Student
from rayqd.model.weight_bits import count_weight_bits
from rayqd.quant import make_grid
from rayqd.teacher.forward import Teacher
from rayqd.types import ScoredRollout
from tests.export.small_models import byte_tokenizer, small_model
from tests.model.calibrating import sequences

TOKENS = np.arange(3, 40, dtype=np.int32)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = small_model("llama", tied=request.param, dtype=torch.float32)
    model.get_output_embeddings().weight.data.mul_(10)  # or all ids would be about as likely
    model.save_pretrained(tmp_path / "source")
    byte_tokenizer().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def settings(tiny_config: Any, source: Path, head: str, **sections: Any) -> Config:
    quant = {"group_size": 32, "init": "rtn", "head": head}
    return tiny_config(model={"name": str(source), "dtype": "float32"}, quant=quant, **sections)


def plain(source: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()


def values_of(student: Student) -> torch.Tensor:
    """What compressed-tensors makes of the codes."""
    assert student.rounded_head is not None
    codes = student.rounded_head.codes
    args = QuantizationArgs(num_bits=codes.bits, strategy="group", group_size=32)
    return dequantize(x_q=codes.codes, scale=codes.scales, args=args)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.from_numpy(TOKENS.astype("int64"))[None], use_cache=False).logits[0, :-1]


@pytest.mark.parametrize("head", ["int8", "int4"])
def test_the_student_computes_with_the_values_of_the_codes(head: str, source: Path, tiny_config: Any) -> None:
    student = Student.load(source, settings(tiny_config, source, head))
    model = plain(source)
    original = model.get_output_embeddings().weight.detach().clone()
    with torch.no_grad():
        for name, codes in student.quantized_layers():
            model.get_parameter(f"{name}.weight").copy_(student.grid.dequantize(codes))
        model.get_output_embeddings().weight.copy_(values_of(student))  # the embedding's too where they are one
    assert torch.equal(student.head, values_of(student))
    assert not torch.equal(student.head, original)
    assert torch.allclose(compute_student_logits(student, TOKENS), logits(model), atol=1e-5, rtol=1e-5)
    assert torch.equal(load_head(source, "float32"), original)


def test_the_result_compares_it_with_the_teachers_own_head(source: Path, tiny_config: Any, make_rollouts: Any) -> None:
    config = settings(tiny_config, source, "int4")
    rollouts = make_rollouts((1, len(TOKENS) - 1))
    rollouts[0].prompt_ids[:], rollouts[0].completion_ids[:] = TOKENS[:1], TOKENS[1:]
    (payload,) = Teacher(load_model(source, "float32"), 8192).hidden(rollouts)
    rows = [ScoredRollout(rollout=rollouts[0], payload=payload)]
    student = Student.load(source, config)
    teacher_head = load_head(source, "float32")
    measured = Heldout(rows, teacher_head, 8192).evaluate(student).kl_to_teacher
    theirs, ours = logits(plain(source)).double(), compute_student_logits(student, TOKENS).double()
    p, q = theirs.log_softmax(-1), ours.log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).mean().item()
    assert measured == pytest.approx(expected, rel=1e-3)
    loss = Learner(student, teacher_head, settings(tiny_config, source, "int4", distill={"beta": 0.0})).step(
        0, rows, rollouts[0].num_loss_tokens
    )
    assert loss.loss == pytest.approx(expected, rel=1e-3)


def test_it_is_not_trained(source: Path, tiny_config: Any, make_rollouts: Any) -> None:
    config = settings(tiny_config, source, "int4", adapter={"kind": "none"})
    student = Student.load(source, config)
    before = student.head.clone()
    rollouts = make_rollouts((5, 9), (7, 3))
    payloads = Teacher(load_model(source, "float32"), 8192).hidden(rollouts)
    rows = [ScoredRollout(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]
    learner = Learner(student, load_head(source, "float32"), config)
    for step in range(2):
        learner.step(step, rows, 12)
    assert torch.equal(student.head, before)
    assert torch.equal(student.head, values_of(student))


def test_calibration_sees_the_embedding_that_the_student_has(source: Path, tiny_config: Any) -> None:
    config = settings(tiny_config, source, "int4")
    grid = make_grid(config.quant, torch.float32)

    def calibrated(model: Any, quant: Any) -> torch.Tensor:
        calibrate(model, quant, grid, sequences(), method="gptq", max_batch_tokens=512)
        return model.model.layers[0].self_attn.q_proj.weight.detach()

    ours = load_model(source, "float32")
    before = ours.get_input_embeddings().weight.detach().clone()
    found = calibrated(ours, config.quant)
    assert torch.equal(ours.get_input_embeddings().weight, before)  # it is given back
    rounded = load_model(source, "float32")
    is_tied = bool(rounded.config.tie_word_embeddings)
    if is_tied:
        with torch.no_grad():
            rounded.get_input_embeddings().weight.copy_(values_of(Student.load(source, config)))
    expected = calibrated(rounded, config.quant.model_copy(update={"head": "none"}))
    assert torch.equal(found, expected)
    if is_tied:
        dense = calibrated(load_model(source, "float32"), config.quant.model_copy(update={"head": "none"}))
        assert not torch.equal(found, dense)


@pytest.mark.slow
def test_an_engine_of_dense_weights_starts_from_the_same_values(
    source: Path, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    config = settings(tiny_config, source, "int8")
    directory = make_rounded_checkpoint(source, config)
    assert directory != source
    student = Student.load(source, config)
    model = plain(directory)
    assert torch.equal(model.get_output_embeddings().weight, student.head)
    assert torch.equal(model.get_input_embeddings().weight, student.model.get_input_embeddings().weight)
    assert make_rounded_checkpoint(source, config) == directory
    packed = load_file(make_initial_checkpoint(source, config) / "model.safetensors")
    assert torch.equal(packed["model.embed_tokens.weight"], student.model.get_input_embeddings().weight)
    assert "lm_head.weight" not in packed or torch.equal(packed["lm_head.weight"], student.head)
    assert make_rounded_checkpoint(source, settings(tiny_config, source, "none")) == source
    kept = load_file(source / "model.safetensors")
    assert torch.equal(kept["model.embed_tokens.weight"], plain(source).get_input_embeddings().weight)


def test_bits_are_those_of_codes_only_where_an_export_stores_codes(source: Path, tiny_config: Any) -> None:
    model = load_meta_model(source)
    counted = {c.kind: c for c in count_weight_bits(model, settings(tiny_config, source, "int4"))}
    assert counted["embedding"].bits_per_weight == 32  # float32
    if "head" in counted:
        # 4 bits, a float32 scale for 32 weights, and the shape, two int64, of 288 · 64 weights
        assert counted["head"].bits_per_weight == 4 + 32 / 32 + 128 / (288 * 64)
        assert counted["head"].num_dense == 0


def test_what_readers_make_of_it_is_said(source: Path, tiny_config: Any) -> None:
    model = load_meta_model(source)
    words = [describe_head(model, settings(tiny_config, source, head).quant) for head in ("none", "int8", "int4")]
    assert words[0] == ""
    if model.config.tie_word_embeddings:
        assert "head and embedding are one matrix, whose codes GGUF and MLX store" in words[2]
    else:
        assert words[1:] == ["quant.head=int8: vLLM reads it on GPUs alone, AWQ has no place for it", ""]


def test_groups_that_do_not_fit_are_refused_with_those_that_do(source: Path, tiny_config: Any) -> None:
    config = settings(tiny_config, source, "int8")
    quant = config.quant.model_copy(update={"group_size": 128})
    message = "quant.group_size=128 does not divide the output head's 64 input features; use 32 or 64"
    with pytest.raises(ConfigError, match=message):
        check_head(load_meta_model(source), quant)


def test_other_formats_have_no_place_for_it() -> None:
    with pytest.raises(ValueError, match="head=int8: files of nvfp4 have no place for it"):
        Config.model_validate({"quant": {"format": "nvfp4", "head": "int8"}})
