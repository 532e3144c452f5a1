"""Every layer is asked for before any weights are read: its fused shape, and what vLLM itself answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rayqd.config.sections import QuantConfig
from rayqd.rollout.kernels import LayerShape, choose_weight_form, explain_split_fusion, find_layer_shapes


def model(**sizes: int) -> LlamaForCausalLM:
    """3 heads of 32 over a width of 96, 1 of them of keys and values; 160 wide inside."""
    usual = {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 32}
    fields: dict[str, Any] = usual | {"intermediate_size": 160, "num_hidden_layers": 2, "vocab_size": 64} | sizes
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**fields))


def test_layers_that_read_the_same_input_are_one_matrix() -> None:
    shapes = find_layer_shapes(model(), QuantConfig(group_size=32))
    layer = "model.layers.0"
    assert shapes == {
        LayerShape(96, 96 + 32 + 32): f"{layer}.self_attn.q_proj + k_proj + v_proj",
        LayerShape(96, 96): f"{layer}.self_attn.o_proj",
        LayerShape(96, 160 + 160): f"{layer}.mlp.gate_proj + up_proj",
        LayerShape(160, 96): f"{layer}.mlp.down_proj",
    }


def test_a_matrix_of_which_a_part_is_dense_cannot_be_fused() -> None:
    quant = QuantConfig(group_size=32, ignore=["lm_head", "k_proj"])
    why = explain_split_fusion(model(), quant)
    layer = "model.layers.0.self_attn"
    assert why == f"vLLM fuses {layer}.q_proj with {layer}.k_proj, which quant.ignore leaves dense"
    whole = ["lm_head", "q_proj", "k_proj", "v_proj"]
    assert explain_split_fusion(model(), QuantConfig(group_size=32, ignore=whole)) == ""


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels pad such a shape")
@pytest.mark.parametrize(("width", "reason"), [(160, ""), (168, "supported sizes are multiples of 32")])
def test_a_layer_that_vllm_has_no_kernel_for_is_named(
    width: int, reason: str, tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 · 168 = 10.5 · 32; the layer that reads 168 inputs stays dense, as no group divides them."""
    if reason and not torch.cpu._is_avx512_supported():
        pytest.skip("this CPU's library has no kernel for any layer")
    sizes = model(intermediate_size=width).config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = tiny_config(quant={"group_size": 32, "ignore": ["lm_head", "down_proj"]})
    form = choose_weight_form(tmp_path, config)
    assert form.is_dense == bool(reason or not torch.cpu._is_avx512_supported())
    if reason:
        assert form.reason.startswith("model.layers.0.mlp.gate_proj + up_proj [96, 336]: CPUWNA16LinearKernel: ")
        assert reason in form.reason
    elif not form.is_dense:
        assert str(form) == "4-bit weights in CPUWNA16LinearKernel"
