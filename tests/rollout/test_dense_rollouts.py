"""vLLM running the values of formats that it has no kernel for: after every publish they are the learner's, to the bit.

vLLM's CPU backend packs dense weights for its matrix products, so an engine can hold new weights and compute with old
ones. Hence everything here looks at what the engine computes, never at what its parameters say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rayqd.config import Config
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.student import Student
from rayqd.rollout.weights import DenseLoader, PackedLoader, choose_weight_loader
from rayqd.types import IntArray
from tests.rollout.served_model import served_model

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
FORMATS: dict[str, dict[str, Any]] = {
    "nvfp4": {"format": "nvfp4"},
    "nf4": {"format": "nf4", "double_quant": True, "init": "awq"},
    "fp4": {"format": "fp4", "group_size": 32},
    "int4 in groups that vLLM has no kernel for": {"group_size": 16},
}
TOKENS: IntArray = np.random.default_rng(0).integers(3, 128, 60, dtype=np.int32)


def config_of(quant: Mapping[str, Any]) -> Config:
    return Config.model_validate({"quant": quant, "adapter": {"rank": 4}})


def trained(source: Path, config: Config, seed: int) -> Student:
    """A student that is far from where it started, norms and biases included where they are published."""
    student = Student.load(source, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    if config.quant.init == "awq":
        for tensor in student.dense_tensors().values():
            if tensor.dim() == 1:
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator))
    return student


def forward_weights(student: Student) -> dict[str, Tensor]:
    """What each layer of the learner computes with: the identity picks a column at a time, and no sum rounds it."""
    weights: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, layer in student.layers.items():
            linear = layer.linear
            bias, linear.bias = linear.bias, None
            weights[name] = layer(torch.eye(linear.in_features, dtype=torch.bfloat16)).mT
            linear.bias = bias
    return weights


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_that_arrive_are_those_of_the_learners_forward_pass(name: str, tiny_model: Path) -> None:
    config = config_of(FORMATS[name])
    student = trained(tiny_model, config, seed=1)
    loader = choose_weight_loader(config)
    assert isinstance(loader, DenseLoader)
    assert loader.prepare_checkpoint(tiny_model, config) == tiny_model
    arrived = dict(loader.convert(collect_rollout_weights(student, config), torch.device("cpu")))
    expected = {f"{name}.weight": weight for name, weight in forward_weights(student).items()}
    if config.quant.init == "awq":
        expected |= {name: tensor for name, tensor in student.dense_tensors().items() if tensor.dim() == 1}
    assert arrived.keys() == expected.keys()
    for tensor_name, tensor in arrived.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[tensor_name]), tensor_name


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, PackedLoader),
        ({"quant": {"group_size": 256}}, DenseLoader),
        ({"model": {"dtype": "float32"}}, DenseLoader),
        ({"quant": {"rule": "asymmetric", "group_size": 32}}, PackedLoader),
    ],
)
def test_int4_travels_into_the_kernels_wherever_vllm_has_one(changes: dict[str, Any], kind: type) -> None:
    assert isinstance(choose_weight_loader(Config.model_validate(changes)), kind)


@pytest.fixture(scope="module")
def biased_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2, whose q, k and v have biases; they are not published, and have to survive a publish."""
    directory = tmp_path_factory.mktemp("biased")
    torch.manual_seed(0)
    sizes = AutoModelForCausalLM.from_pretrained(tiny_model).config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    model = Qwen2ForCausalLM(
        Qwen2Config(
            **{key: sizes[key] for key in kept},
            num_key_value_heads=1,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=2,
        )
    )
    for name, parameter in model.named_parameters():
        scale = 4.0 if parameter.dim() == 2 else 1.0
        parameter.data = parameter.data * scale if "bias" not in name else torch.randn_like(parameter)
    model.to(torch.bfloat16).save_pretrained(directory)
    for file in tiny_model.glob("*token*"):
        (directory / file.name).write_bytes(file.read_bytes())
    for file in tiny_model.glob("*.jinja"):
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture(scope="module", params=["llama nf4", "qwen2 nvfp4"])
def engine(request: pytest.FixtureRequest) -> tuple[Any, Path, Config]:
    """An engine that runs a dense model, where that model lies, and the run's configuration."""
    from rayqd.rollout.vllm import VLLMEngine

    architecture, name = request.param.split()
    source: Path = request.getfixturevalue("tiny_model" if architecture == "llama" else "biased_model")
    config = config_of(FORMATS[name])
    vllm = VLLMEngine(
        source,
        context_length=128,
        max_concurrent=8,
        gpu_memory_utilization=0.3,
        dtype="bfloat16",
        weight_loader=choose_weight_loader(config),
    )
    return vllm, source, config


def computed(engine: Any) -> dict[str, Tensor]:
    """What every fused layer multiplies with, found by multiplying the identity, after its bias is taken off."""
    model = served_model(engine)
    device = next(model.parameters()).device
    weights: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
            eye = torch.eye(module.input_size, dtype=torch.bfloat16, device=device)
            weights[name] = module.quant_method.apply(module, eye).mT.cpu()
    return weights


@pytest.mark.slow
@pytest.mark.vllm
def test_each_publish_is_what_the_kernels_compute_with(engine: Any) -> None:
    vllm, source, config = engine
    for seed in (1, 2):  # the second one replaces weights that were reloaded themselves
        student = trained(source, config, seed)
        vllm.load_weights(collect_rollout_weights(student, config))
        expected = forward_weights(student)
        actual = computed(vllm)
        assert len(actual) == 8
        for name, weight in actual.items():
            parent, _, leaf = name.rpartition(".")
            parts = [f"{parent}.{part}" for part in FUSED.get(leaf, [leaf])]
            assert torch.equal(weight, torch.cat([expected[part] for part in parts])), (seed, name)


@pytest.mark.slow
@pytest.mark.vllm
def test_log_probabilities_follow_each_publish(engine: Any) -> None:
    """Beside those of transformers with the same weights, biases and tied head included."""
    vllm, source, config = engine
    ids = torch.from_numpy(TOKENS.astype("int64"))[None]
    for seed in (3, 4):
        student = trained(source, config, seed)
        vllm.load_weights(collect_rollout_weights(student, config))
        served = torch.tensor(vllm.prompt_logprobs(TOKENS))
        in_16_bit, in_32_bit = (_logprobs(student, source, dtype, ids) for dtype in (torch.bfloat16, torch.float32))
        # over 60 tokens, as the largest of them is another one with each CPU's order of sums
        rounding = (in_16_bit - in_32_bit).square().mean().sqrt()
        assert (served - in_32_bit).square().mean().sqrt() <= 1.5 * rounding
        assert rounding < 0.1


def _logprobs(student: Student, source: Path, dtype: torch.dtype, ids: Tensor) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    own = model.state_dict()
    for name, tensor in student.dense_tensors().items():
        own[name].copy_(tensor)
    for name, weight in student.quantized_layers():
        own[f"{name}.weight"].copy_(student.grid.dequantize(weight))
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, ids[0, 1:, None])[:, 0]
