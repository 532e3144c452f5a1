"""Which layers get an adapter, and that PEFT would have made the same ones."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from torch import nn

from rayqd.config import Config
from rayqd.config.sections import AdapterConfig, QuantConfig
from rayqd.errors import ConfigError
from rayqd.model.adapters import adapted_names, describe_unadapted
from rayqd.model.qat_lora import QATLoraLinear
from rayqd.model.student import Student
from rayqd.quant import quantizable_layers
from tests.model.small_architectures import make_model

NAMES = ["layers.0.qkv_proj", "layers.0.o_proj", "layers.1.qkv_proj", "layers.1.o_proj"]


def make_student(model_type: str, **adapter: object) -> Student:
    config = Config.model_validate({"quant": {"group_size": 32}, "adapter": {"rank": 4, **adapter}})
    return Student(make_model(model_type), config)


@pytest.mark.parametrize("model_type", ["phi3", "gpt_neox", "qwen2_moe", "deepseek_v3"])
def test_every_quantized_linear_layer_is_trained_unless_told_otherwise(model_type: str) -> None:
    expected = quantizable_layers(make_model(model_type), QuantConfig(group_size=32))
    student = make_student(model_type)
    adapted = [name for name, layer in student.layers.items() if isinstance(layer, QATLoraLinear)]
    assert adapted == list(expected)
    trained = {name for name in student.parameters() if isinstance(student.model.get_parameter(name), nn.Parameter)}
    assert {name.partition(".lora_")[0] for name in trained} >= set(expected)
    assert all(parameter.dtype == torch.float32 for parameter in student.parameters().values())


def test_named_layers_alone_are_trained_and_a_line_says_what_is_not() -> None:
    adapter = AdapterConfig(targets=["o_proj"])
    assert adapted_names(NAMES, adapter) == ["layers.0.o_proj", "layers.1.o_proj"]
    assert describe_unadapted(NAMES, adapter) == (
        "adapter.targets leaves 2 of 4 quantized layers without an adapter: qkv_proj"
    )
    assert describe_unadapted(NAMES, AdapterConfig()) == ""
    assert describe_unadapted(NAMES, AdapterConfig(kind="none")) == ""
    with pytest.raises(ConfigError, match=r"adapter.targets=\['k_proj'\] names no quantized layer; the model has"):
        adapted_names(NAMES, AdapterConfig(targets=["k_proj"]))


def test_adapters_have_the_names_and_first_values_that_peft_gives_them() -> None:
    student = make_student("llama")
    reference = make_model("llama")
    torch.manual_seed(Config().seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=targets), reference)
    expected = get_peft_model_state_dict(reference)
    own = student.state_dict()
    assert list(own) == list(expected)
    assert all(torch.equal(own[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_brings_back_every_adapter() -> None:
    student, other = make_student("qwen2_moe"), make_student("qwen2_moe")
    with torch.no_grad():
        for parameter in student.parameters().values():
            parameter.normal_()
    other.load_state_dict(student.state_dict())
    theirs = other.parameters()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in student.parameters().items())
