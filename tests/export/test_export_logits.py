"""What the files of an export compute, beside the student that they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import byte_tokenizer, small_model
from transformers import AutoModelForCausalLM

from rayqd.errors import ModelError
from rayqd.export.logits import LogitDifference, check_logits, compare_logits, compute_student_logits, short_row
from rayqd.export.write import export
from rayqd.model.student import Student
from rayqd.types import IntArray

DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture
def make_student(tmp_path: Path, tiny_config: Any) -> Any:
    """A function that returns a student with adapters far from zero, its source and its configuration."""

    def make(dtype: str, **sections: Any) -> tuple[Student, Path, Any]:
        source = tmp_path / "model"
        model = small_model("qwen3", tied=False, dtype=getattr(torch, dtype), bos_token_id=None)
        model.save_pretrained(source)
        byte_tokenizer().save_pretrained(source)
        config = tiny_config(
            model={"name": str(source), "dtype": dtype}, quant={"group_size": 32}, runs_dir=tmp_path, **sections
        )
        student = Student.load(source, config)
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        return student, source, config

    return make


@pytest.fixture
def row(make_rollouts: Any) -> IntArray:
    return short_row(make_rollouts((20, 30)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_export_computes_what_the_student_does_but_for_rounding(
    make_student: Any, row: IntArray, tmp_path: Path, dtype: str
) -> None:
    student, source, config = make_student(dtype)
    export(student, source, config, tmp_path / "export")
    found = check_logits(tmp_path / "export", compute_student_logits(student, row), row, dtype)
    assert found.difference < 10 * torch.finfo(getattr(torch, dtype)).eps
    assert (tmp_path / "export").is_dir()


def test_student_s_logits_are_those_of_the_plain_model_in_transformers(make_student: Any, row: IntArray) -> None:
    student, source, _ = make_student("float32")
    logits = compute_student_logits(student, row)
    plain = AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, layer in student.layers.items():
            plain.get_submodule(name).weight.copy_(layer.grid.dequantize(layer.quantize(name)))
        expected = plain(torch.from_numpy(row.astype(np.int64))[None]).logits[0, :-1]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_adapters_outside_the_rounding_are_merged_first(make_student: Any, row: IntArray, tmp_path: Path) -> None:
    student, source, config = make_student("float32", adapter={"rank": 4, "placement": "outside"})
    export(student, source, config, tmp_path / "export")
    check_logits(tmp_path / "export", compute_student_logits(student, row), row, "float32")


@pytest.mark.parametrize(
    ("setting", "value", "dtype"),
    [
        ("rope_parameters", {"rope_theta": 100.0, "rope_type": "default"}, "float32"),
        *(("rms_norm_eps", 0.1, dtype) for dtype in DTYPES),
    ],
)
def test_files_that_are_another_model_are_set_aside(
    make_student: Any, row: IntArray, tmp_path: Path, setting: str, value: object, dtype: str
) -> None:
    student, source, config = make_student(dtype)
    export(student, source, config, tmp_path / "export")
    file = tmp_path / "export" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {setting: value}))
    with pytest.raises(
        ModelError, match=r"not what was trained: its logits differ by .*; its files are in .*-differs, "
    ):
        check_logits(tmp_path / "export", compute_student_logits(student, row), row, dtype)
    assert not (tmp_path / "export").exists()
    assert (tmp_path / "export-differs" / "model.safetensors").is_file()


def test_a_nan_is_no_rounding() -> None:
    assert not LogitDifference(difference=float("nan"), rounding=0.1, dtype=torch.float32).is_rounding


def test_difference_is_relative_and_blind_to_what_the_softmax_does_not_see(
    make_student: Any, row: IntArray, tmp_path: Path
) -> None:
    student, source, config = make_student("float32")
    export(student, source, config, tmp_path / "export")
    logits = compute_student_logits(student, row)
    assert compare_logits(tmp_path / "export", logits + 3, row, "float32").is_rounding
    scaled = compare_logits(tmp_path / "export", logits * 1.25, row, "float32")
    assert scaled.difference == pytest.approx(0.2, rel=1e-3)  # |1 - 1.25| / 1.25
