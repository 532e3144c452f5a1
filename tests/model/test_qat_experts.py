"""Experts inside the rounding, against the model's own eager forward on plain weights, and against float64 loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.config.sections import QuantConfig
from rayqd.errors import ConfigError
from rayqd.model.fused_experts import explain_dense_experts, find_fused_experts, quantizable_experts
from rayqd.model.qat_experts import QATExperts
from rayqd.model.student import Student
from rayqd.quant import make_grid
from tests.model.small_architectures import make_model

MOE = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "glm4_moe", "jamba"]
IDS = torch.tensor([[5, 17, 3, 88, 41, 9, 60, 23, 77, 12, 34, 50]])


def make_student(model_type: str, *, trainable: bool = True, **adapter: object) -> Student:
    sections = {"quant": {"group_size": 32}, "adapter": {"rank": 4, **adapter}, "model": {"dtype": "float32"}}
    student = Student(make_model(model_type), Config.model_validate(sections), trainable=trainable)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.parameters().items():
            if ".lora_B." in name:
                parameter.normal_(std=0.05)
    return student


def eager_logits(model: torch.nn.Module, ids: Tensor = IDS) -> Tensor:
    model.set_experts_implementation("eager")
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


@pytest.mark.parametrize("model_type", MOE)
def test_experts_are_made_of_the_matrices_that_the_models_own_writer_stores(model_type: str, tmp_path: object) -> None:
    from safetensors.torch import load_file

    model = make_model(model_type)
    model.save_pretrained(tmp_path)
    stored = load_file(f"{tmp_path}/model.safetensors")
    found = find_fused_experts(model)
    assert {name.rpartition(".")[2] for name in found} == {"gate_up_proj", "down_proj"}
    for name, experts in found.items():
        matrices = dict(experts.split_values(model.get_parameter(name)))
        assert all(torch.equal(stored[f"{matrix}.weight"], values) for matrix, values in matrices.items())
    assert len({m.name for e in found.values() for m in e.matrices}) == sum(".experts." in name for name in stored)


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("model_type", MOE)
def test_the_student_is_the_plain_model_on_the_values_of_its_codes(model_type: str, kind: str) -> None:
    student = make_student(model_type, kind=kind)
    plain = make_model(model_type)
    fused = find_fused_experts(plain)
    state = plain.state_dict()
    slices = {m.name: (name, m.rows) for name, experts in fused.items() for m in experts.matrices}
    num_experts_seen = 0
    for name, quantized in student.quantized_layers():
        values = student.grid.dequantize(quantized)
        if name in slices:
            parameter, rows = slices[name]
            state[parameter].flatten(0, 1)[rows] = values
            num_experts_seen += 1
        else:
            state[f"{name}.weight"].copy_(values)
    assert num_experts_seen == len(slices) > 0
    expected = eager_logits(plain)
    with torch.no_grad():
        own = student.model(input_ids=IDS).logits[0]
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    assert (expected - eager_logits(make_model(model_type))).abs().max() > 1e-2  # which the rounding changed
    torch.testing.assert_close(eager_logits(student.to_plain_model()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("saturated", ["pass", "stop"])
def test_gradients_of_adapters_are_those_of_each_experts_values(saturated: str) -> None:
    student = make_student("qwen2_moe", saturated=saturated)
    plain = copy.deepcopy(make_student("qwen2_moe").to_plain_model()).double()
    name = "model.layers.0.mlp.experts.gate_up_proj"
    values = plain.get_parameter(name).requires_grad_(True)
    plain.set_experts_implementation("eager")
    plain(input_ids=IDS).logits.pow(2).mean().backward()
    student.model(input_ids=IDS).logits.pow(2).mean().backward()
    layer = student.layers[name]
    assert isinstance(layer, QATExperts)
    assert layer.factors is not None
    assert values.grad is not None
    _, inside = layer.grid.fake_quantize_with_mask(layer.merged_weight())
    gradient = values.grad * (inside.reshape(values.shape) if saturated == "stop" else 1)
    a, b = layer.factors
    for e in range(4):
        grad_a = layer.scaling * b[e].detach().double().mT @ gradient[e]
        grad_b = layer.scaling * gradient[e] @ a[e].detach().double().mT
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad[e].double(), grad_a, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(b.grad[e].double(), grad_b, rtol=1e-3, atol=1e-6)
    assert gradient.abs().max() > 1e-4


def test_full_qat_trains_experts_in_float32_and_an_expert_without_tokens_stays() -> None:
    student = make_student("mixtral", kind="none")
    name = "model.layers.1.mlp.experts.down_proj"
    chosen: list[Tensor] = []
    experts = student.model.get_submodule("model.layers.1.mlp.experts")
    experts.register_forward_pre_hook(lambda _, args: chosen.append(args[1].clone()))
    student.model(input_ids=IDS[:, :1]).logits.sum().backward()
    weight = student.parameters()[f"{name}.weight"]
    assert weight.dtype == torch.float32
    assert weight.grad is not None
    seen = {int(e) for e in chosen[0].flatten()}
    moved = {e for e in range(4) if weight.grad[e].abs().max() > 0}
    assert moved == seen
    assert 0 < len(seen) < 4


def test_a_weight_that_the_module_around_it_reads_is_the_rounded_one_and_is_trained() -> None:
    student = make_student("jamba", kind="none")
    name = "model.layers.0.mamba.dt_proj"  # whose forward pass is never called
    layer = student.layers[name]
    rounded = layer.grid.dequantize(layer.quantize(name))
    assert torch.equal(student.model.get_submodule(name).weight, rounded)
    student.model(input_ids=IDS).logits.pow(2).mean().backward()
    gradient = student.parameters()[f"{name}.weight"].grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_adapters_outside_the_rounding_are_added_to_the_values() -> None:
    student = make_student("qwen3_moe", placement="outside")
    layer = student.layers["model.layers.0.mlp.experts.down_proj"]
    assert isinstance(layer, QATExperts)
    assert layer.factors is not None
    a, b = layer.factors
    rounded = layer.grid.fake_quantize(layer.weight.flatten(0, 1)).reshape(layer.weight.shape)
    for e in range(4):
        torch.testing.assert_close(layer()[e], rounded[e] + layer.scaling * b[e] @ a[e])
    with student.as_exported():
        assert torch.equal(layer().flatten(0, 1), layer.grid.dequantize(layer.quantize("x")))


def test_a_checkpoint_brings_back_every_experts_adapter() -> None:
    student, other = make_student("olmoe"), make_student("olmoe")
    with torch.no_grad():
        for parameter in student.parameters().values():
            parameter.normal_()
    state = student.state_dict()
    assert state["model.layers.0.mlp.experts.gate_up_proj.lora_A"].shape == (4, 4, 64)
    other.load_state_dict(state)
    assert all(torch.equal(own, other.parameters()[name]) for name, own in student.parameters().items())


def test_what_no_reader_loads_stays_in_16_bits() -> None:
    assert find_fused_experts(make_model("gpt_oss")) == {}  # stored as the model holds it, [E, K, N]
    mixtral = make_model("mixtral")
    assert len(quantizable_experts(mixtral, QuantConfig(group_size=32))) == 4
    for quant in (QuantConfig(format="nf4"), QuantConfig(group_size=32, rule="asymmetric")):
        assert quantizable_experts(mixtral, quant) == {}
        assert explain_dense_experts(quant)


def test_ignore_names_experts_by_parameter_or_module_and_groups_must_fit() -> None:
    model = make_model("mixtral")
    quant = QuantConfig(group_size=32, ignore=["lm_head", "experts.down_proj", "0.mlp.experts"])
    assert list(quantizable_experts(model, quant)) == ["model.layers.1.mlp.experts.gate_up_proj"]
    with pytest.raises(ConfigError, match=r"does not divide the 96 input .* add experts\.down_proj to quant\.ignore"):
        quantizable_experts(model, QuantConfig(group_size=64))


@pytest.mark.parametrize("rule", ["signed", "absmax", "searched"])
def test_each_experts_codes_are_those_of_its_matrix_alone(rule: str) -> None:
    model = make_model("qwen2_moe")
    grid = make_grid(QuantConfig(group_size=32, rule=rule), torch.float32)  # type: ignore[arg-type]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weight = model.get_parameter(name)
    for matrix, quantized in find_fused_experts(model)[name].split(QATExperts(weight, grid).quantize(name)):
        expert, part = int(matrix.split(".")[-2]), matrix.rpartition(".")[2]
        alone = grid.quantize(weight[expert, :32] if part == "gate_proj" else weight[expert, 32:])
        assert torch.equal(quantized.codes, alone.codes)
        assert torch.equal(quantized.scales, alone.scales)
