"""How far a rounded model's layers are from the original's, against plain linears in transformers, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayqd.config import Config
from rayqd.export.logits import compute_packed_states, compute_student_logits
from rayqd.model import layer_outputs
from rayqd.model.decoder_layers import decoder_layers
from rayqd.model.layer_outputs import OutputReference
from rayqd.model.load import load_model
from rayqd.model.student import Student

TOKENS = np.random.default_rng(0).integers(3, 128, 23, dtype=np.int32)


@pytest.fixture
def config(tiny_config: Any) -> Config:
    return tiny_config(model={"dtype": "float32"})


def record(model: Any, config: Config, *methods: str) -> OutputReference:
    return OutputReference.record(model, config.quant, methods, TOKENS, compute_packed_states)


def errors_of(reference: OutputReference, student: Student) -> dict[str, float]:
    return reference.errors(student.model, lambda _, ids: compute_student_logits(student, ids))


def outputs_in_float64(directory: Path, values: dict[str, Tensor], names: list[str]) -> dict[str, np.ndarray]:
    """What leaves the linears `names` where transformers computes all in float64 with `values` for weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    found: dict[str, np.ndarray] = {}
    for name, value in values.items():
        model.get_submodule(name).weight.data = value.double()
    for name in names:
        linear = model.get_submodule(name)
        assert type(linear) is nn.Linear
        linear.register_forward_hook(lambda _m, _i, output, name=name: found.__setitem__(name, output[0].numpy()))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(TOKENS.astype(np.int64))[None], use_cache=False)
    return found


def test_the_error_is_that_of_plain_linears_in_float64(tiny_model: Path, config: Config) -> None:
    model = load_model(tiny_model, "float32")
    reference = record(model, config)
    student = Student(model, config)
    for name, parameter in student.parameters().items():
        if "lora_B" in name:  # zero at first: as it is after some steps
            parameter.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(len(name)))
    found = errors_of(reference, student)
    assert len(found) == 14

    values = {name: student.grid.dequantize(quantized) for name, quantized in student.quantized_layers()}
    checked = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    original = outputs_in_float64(tiny_model, {}, checked)
    rounded = outputs_in_float64(tiny_model, values, checked)
    for name in checked:
        squares = [
            sum((a - b) ** 2 for a, b in zip(ys, original_ys, strict=True)) / sum(b**2 for b in original_ys)
            for ys, original_ys in zip(rounded[name], original[name], strict=True)
        ]
        assert found[name] == pytest.approx(float(np.mean(squares)) ** 0.5, rel=1e-3)


def test_the_original_has_no_error_and_what_training_changes_changes_it(tiny_model: Path, config: Config) -> None:
    model = load_model(tiny_model, "float32")
    reference = record(model, config)
    assert set(reference.errors(model, compute_packed_states).values()) == {0.0}


def test_what_awq_divides_on_purpose_is_left_out(tiny_model: Path, config: Config) -> None:
    model = load_model(tiny_model, "float32")
    kinds = {name.rpartition(".")[2] for name in record(model, config, "awq").outputs}
    assert kinds == {"q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in record(model, config, "gptq").outputs} == kinds | {"v_proj", "up_proj"}


def test_a_file_brings_it_back(tiny_model: Path, config: Config, tmp_path: Path) -> None:
    model = load_model(tiny_model, "float32")
    reference = record(model, config)
    assert OutputReference.load(tmp_path / "outputs.safetensors") is None
    reference.save(tmp_path / "outputs.safetensors")
    again = OutputReference.load(tmp_path / "outputs.safetensors")
    assert again is not None
    student = Student(model, config)
    assert errors_of(again, student) == errors_of(reference, student)


def test_of_a_wide_model_some_tokens_are_kept(
    tiny_model: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_model, "float32")
    every = record(model, config)
    width = sum(output.shape[1] for output in every.outputs.values())
    monkeypatch.setattr(layer_outputs, "_MOST_BYTES", 4 * width * 12)
    some = record(model, config)
    assert some.kept.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]  # 12 of 23, both ends among them
    for name, output in some.outputs.items():
        assert torch.equal(output, every.outputs[name][some.kept])


def test_compiled_layers_are_read_too(tiny_model: Path, config: Config) -> None:
    """As `compile_layers` leaves them: with a forward of their own, which calls no hooks."""
    model = load_model(tiny_model, "float32")

    def compiled(*_args: object, **_kwargs: object) -> None:
        raise AssertionError

    for layer in decoder_layers(model):
        vars(layer)["forward"] = compiled
    assert len(record(model, config).outputs) == 14
    assert all(vars(layer)["forward"] is compiled for layer in decoder_layers(model))
