"""GPTQ and AWQ where tokens are routed to experts, and where norms have more readers than linear layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rayqd.config.sections import QuantConfig
from rayqd.model.calibration import calibrate, methods
from rayqd.model.calibration.expert_statistics import record_experts
from rayqd.model.fused_experts import quantizable_experts
from rayqd.quant import make_grid
from rayqd.types import IntArray
from tests.model.small_architectures import make_model

QUANT = QuantConfig(group_size=32)
GRID = make_grid(QUANT, torch.float32)


def sequences(count: int = 12, seed: int = 0) -> list[IntArray]:
    random = np.random.default_rng(seed)
    return [random.integers(3, 128, int(n), dtype=np.int32) for n in random.integers(5, 41, count)]


def packed_model(model_type: str) -> Any:
    from rayqd.model import packed_attention

    model = make_model(model_type)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.5 * torch.rand_like(parameter))
    model.set_attn_implementation(packed_attention.NAME)
    return model


def eager_logits(model: Any, ids: IntArray) -> Tensor:
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0]


@pytest.mark.parametrize("model_type", ["deepseek_v3", "qwen2_moe", "mixtral", "glm4_moe", "phi3"])
def test_awq_without_rounding_and_clipping_leaves_the_logits(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "clip_groups", lambda weight, *_: weight)
    model, remarks = packed_model(model_type), list[str]()
    changed = calibrate(model, QUANT, GRID, sequences(), method="awq", max_batch_tokens=256, on_remark=remarks.append)
    for ids in sequences(3, seed=3):
        expected = eager_logits(packed_model(model_type), ids)
        torch.testing.assert_close(eager_logits(model, ids), expected, rtol=1e-3, atol=1e-3)
    assert any(name.endswith("input_layernorm.weight") for name in changed)
    said = [remark for remark in remarks if remark.startswith("AWQ leaves")]
    assert all("read by something else" in remark for remark in said)


def test_linears_that_read_one_norm_are_found_where_others_are_called_in_between() -> None:
    """Multi-head latent attention: q_b_proj is called between the two that read the layer's norm."""
    model = packed_model("deepseek_v3")
    changed = calibrate(model, QUANT, GRID, sequences(), method="awq", max_batch_tokens=256)
    for name in ("input_layernorm", "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"):
        assert f"model.layers.0.{name}.weight" in changed


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_moments_are_those_of_a_loop_over_tokens_and_their_experts(model_type: str) -> None:
    model = packed_model(model_type)
    model.set_attn_implementation("eager")
    names = [name for name in quantizable_experts(model, QUANT) if ".layers.1." in name]
    experts = model.get_submodule(names[0].rpartition(".")[0])
    calls: list[tuple[Tensor, Tensor]] = []
    experts.register_forward_pre_hook(lambda _, args: calls.append((args[0].double(), args[1])))
    with record_experts(model, names) as found:
        model(input_ids=torch.from_numpy(sequences()[0].astype(np.int64))[None])
    first, second = found
    expected = [torch.zeros_like(each.second_moments, dtype=torch.float64) for each in found]
    counts = [0, 0, 0, 0]
    for hidden, chosen in calls:
        for x, routed in zip(hidden, chosen, strict=True):
            for e in {int(e) for e in routed}:
                gate, up = (experts.gate_up_proj[e].double() @ x).chunk(2)
                middle = F.silu(gate) * up
                expected[0][e] += torch.outer(x, x)
                expected[1][e] += torch.outer(middle, middle)
                counts[e] += 1
    assert first.num_tokens.tolist() == second.num_tokens.tolist() == counts
    torch.testing.assert_close(first.second_moments.double(), expected[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second.second_moments.double(), expected[1], rtol=1e-3, atol=1e-4)


def rounded_logits(model: Any, ids: IntArray) -> Tensor:
    """With experts alone on the grid."""
    for name in quantizable_experts(model, QUANT):
        weight = model.get_parameter(name)
        weight.data = GRID.fake_quantize(weight.data.flatten(0, 1)).reshape(weight.shape)
    return eager_logits(model, ids)


@pytest.mark.parametrize("method", ["gptq", "awq", "autoround"])
def test_calibrated_experts_are_nearer_to_the_model_than_rounded_ones(method: str) -> None:
    held_out = sequences(1, seed=7)[0]
    model, dense = packed_model("mixtral"), eager_logits(packed_model("mixtral"), held_out)
    before = {name: model.get_parameter(name).clone() for name in quantizable_experts(model, QUANT)}
    quant = QuantConfig(group_size=32, ignore=["lm_head", "k_proj", "v_proj", "o_proj"], rounding_steps=20)
    calibrate(model, quant, GRID, sequences(48), method=method, max_batch_tokens=256)
    calibrated = packed_model("mixtral")
    for name in before:
        calibrated.get_parameter(name).copy_(model.get_parameter(name))
    error = (rounded_logits(calibrated, held_out) - dense).pow(2).mean()
    assert error < (rounded_logits(packed_model("mixtral"), held_out) - dense).pow(2).mean()


@pytest.mark.parametrize("method", ["gptq", "autoround"])
def test_experts_that_saw_no_token_keep_their_weights_and_are_named(method: str) -> None:
    model, original = packed_model("qwen3_moe"), packed_model("qwen3_moe")
    remarks: list[str] = []
    quant = QuantConfig(group_size=32, rounding_steps=20)
    ids = [np.array([5], dtype=np.int32)]
    calibrate(model, quant, GRID, ids, method=method, max_batch_tokens=8, on_remark=remarks.append)
    (remark,) = remarks  # one token goes to 2 of 4 experts in each of 2 layers, which have 2 weights each
    assert remark.startswith("8 of 16 weights of experts saw no calibration token and are rounded to nearest: model.")
    name = "model.layers.0.mlp.experts.gate_up_proj"
    same = [torch.equal(a, b) for a, b in zip(model.get_parameter(name), original.get_parameter(name), strict=True)]
    assert sum(same) == 2
