"""AWQ over a model: what is folded into what, and that nothing changes before the rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayqd.config.sections import QuantConfig
from rayqd.model.calibration import calibrate
from rayqd.model.calibration.methods import AWQ
from rayqd.model.calibration.previous_op import detect_gain_offset
from rayqd.model.calibration.statistics import collect_input_statistics
from rayqd.model.load import load_model
from rayqd.quant import make_grid, quantizable_layers
from tests.model.calibrating import QUANT, kl_to, logits, quantized, sequences

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def small(kind: str, **changes: Any) -> Any:
    """A random float32 model whose norms do not all multiply by the same."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.5 * torch.rand_like(parameter))
        elif "embed" in name:
            parameter.data.mul_(torch.randn(parameter.shape[1]).exp() * 20)
        else:
            parameter.data.mul_(4)
    return model


@torch.no_grad()
def scale_all_layers(model: Any, quant: QuantConfig = QUANT) -> set[str]:
    """AWQ's scales without clipping, each layer on what the original model gives it; what changed, by its name."""
    grid = make_grid(quant, torch.float32)
    names = {module: name for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in model.base_model.layers:

        def run() -> None:
            for ids in sequences(8):
                logits(model, ids)

        linears = {n: m for n, m in quantizable_layers(model, quant).items() if n.startswith(f"{names[layer]}.")}
        AWQ(grid, clip=False)(layer, linears, collect_input_statistics(layer, names, run))
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def of_layer(changed: set[str], index: int = 1) -> set[str]:
    prefix = f"model.layers.{index}."
    return {name.removeprefix(prefix).removesuffix(".weight") for name in changed if name.startswith(prefix)}


FED_BY_NORMS = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}
LLAMA_NORMS = {"input_layernorm", "post_attention_layernorm"}


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("Llama", {}, FED_BY_NORMS | LLAMA_NORMS | {"mlp.down_proj"}),
        (  # without grouped attention v_proj's channels are o_proj's
            "Llama",
            {"num_key_value_heads": 4},
            FED_BY_NORMS | LLAMA_NORMS | {"mlp.down_proj", "self_attn.o_proj"},
        ),
        ("Qwen3", {}, FED_BY_NORMS | LLAMA_NORMS | {"mlp.down_proj"}),
        # 1 + weight, and another norm before the MLP
        ("Gemma2", {}, FED_BY_NORMS | {"input_layernorm", "pre_feedforward_layernorm", "mlp.down_proj"}),
    ],
)
def test_before_rounding_the_model_computes_what_it_did(kind: str, changes: dict[str, Any], expected: set[str]) -> None:
    model, original = small(kind, **changes), small(kind, **changes)
    changed = of_layer(scale_all_layers(model))
    assert changed == expected
    for ids in sequences(4, seed=3):
        torch.testing.assert_close(logits(model, ids), logits(original, ids), rtol=1e-4, atol=1e-4)


def test_layers_that_stay_in_16_bits_are_scaled_with_the_others() -> None:
    quant = QuantConfig(group_size=32, ignore=["lm_head", "k_proj"])
    model, original = small("Llama"), small("Llama")
    assert "self_attn.k_proj" in of_layer(scale_all_layers(model, quant))
    torch.testing.assert_close(logits(model, sequences()[0]), logits(original, sequences()[0]), rtol=1e-4, atol=1e-4)


def test_what_a_norm_multiplies_by_is_found_out_or_left_alone() -> None:
    from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class Tanh(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.weight)

    llama, gemma = LlamaRMSNorm(64).bfloat16(), GemmaRMSNorm(64).bfloat16()
    for norm in (llama, gemma):
        norm.weight.data = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert (detect_gain_offset(llama), detect_gain_offset(gemma), detect_gain_offset(Tanh())) == (0.0, 1.0, None)


@pytest.mark.slow
def test_awq_is_nearer_to_the_dense_model_than_rounding_and_says_what_it_changed(tiny_model: Path) -> None:
    load: Callable[[], Any] = lambda: load_model(tiny_model, "bfloat16")  # noqa: E731
    model, dense, grid = load(), load(), make_grid(QUANT, torch.bfloat16)
    changed = calibrate(model, QUANT, grid, sequences(48), method="awq", max_batch_tokens=256)
    before, after = dense.state_dict(), model.state_dict()
    assert changed == {name for name in before if not torch.equal(before[name], after[name])}
    assert {"model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.o_proj.weight"} <= changed
    assert kl_to(dense, quantized(model)) < kl_to(dense, quantized(load()))


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"format": "nvfp4"}, {"format": "nf4", "group_size": 64}])
def test_awq_takes_any_format(fields: dict[str, Any], tiny_model: Path) -> None:
    quant = QuantConfig.model_validate(fields)
    assert quant.method == "awq"
    grid = make_grid(quant, torch.bfloat16)
    model = load_model(tiny_model, "bfloat16")
    calibrate(model, quant, grid, sequences(16), method="awq", max_batch_tokens=256)
    dense = load_model(tiny_model, "bfloat16")
    rounded = load_model(tiny_model, "bfloat16")
    assert kl_to(dense, quantized(model, quant, grid)) < 1.1 * kl_to(dense, quantized(rounded, quant, grid))
