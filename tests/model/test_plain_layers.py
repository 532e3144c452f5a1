"""A student that computes with the values of its codes, made once, or rounds in every pass where memory lacks room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayqd.config import Config
from rayqd.evals.language_model import own_attention
from rayqd.model import student as module
from rayqd.model.student import Student


def test_a_student_for_whose_values_there_is_no_memory_goes_on_rounding(
    tiny_config: Callable[..., Config], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Student.load(tiny_model, tiny_config(model={"dtype": "float32"}))
    made: list[str] = []

    def run_out(layer: Any, name: str) -> Any:
        made.append(name)
        if len(made) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(layer, name)

    plain = module._plain_linear
    ids = torch.arange(1, 9)[None]
    with torch.no_grad(), student.as_exported(), own_attention(student.model):
        with student.with_plain_layers() as is_plain:
            assert is_plain
            logits = student.model(ids).logits
        monkeypatch.setattr(module, "_plain_linear", run_out)
        with student.with_plain_layers() as is_plain:
            assert not is_plain
            assert len(made) == 3
            assert all(student.model.get_submodule(name) is student.layers[name] for name in made)
            torch.testing.assert_close(student.model(ids).logits, logits, rtol=0, atol=1e-5)
