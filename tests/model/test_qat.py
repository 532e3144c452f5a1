"""The layer that trains inside the rounding, against a float64 loop over its definition."""

import pytest
import torch
from peft import LoraConfig
from torch import nn

from rayqd.config.sections import QuantConfig
from rayqd.model.fake_quantize import COMPILER_OPTIONS, fake_quantize_sum_backward
from rayqd.model.qat import QATLinear
from rayqd.model.qat_lora import QATLoraLinear
from rayqd.quant import make_grid
from rayqd.quant.int4 import Int4Grid

RULES = ["signed", "absmax", "asymmetric", "searched"]


def lora_layer(rule: str, dtype: torch.dtype = torch.float32) -> QATLoraLinear:
    torch.manual_seed(3)
    linear = nn.Linear(64, 24, bias=True).to(dtype).requires_grad_(False)
    layer = QATLoraLinear(linear, "default", config=LoraConfig(r=4, lora_alpha=12), r=4, lora_alpha=12)
    layer.set_quantizer(make_grid(QuantConfig(group_size=32, rule=rule), dtype))  # type: ignore[arg-type]
    nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    layer.lora_A["default"].float()
    layer.lora_B["default"].float()
    return layer


@pytest.mark.parametrize("rule", RULES)
def test_forward_uses_exactly_the_weights_that_are_exported(rule: str) -> None:
    layer = lora_layer(rule)
    exported = layer.grid.dequantize(layer.grid.quantize(layer.merged_weight()))
    layer.get_base_layer().bias = None
    assert torch.equal(layer(torch.eye(64)).mT, exported)  # one-hot rows add zeros only, so the product is exact


@pytest.mark.parametrize("stops_saturated", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_those_of_the_merged_weight_where_its_code_lets_them_through(
    rule: str, stops_saturated: bool
) -> None:
    layer = lora_layer(rule)
    layer.set_quantizer(layer.grid, stops_saturated=stops_saturated)
    x = torch.randn(5, 7, 64, requires_grad=True)
    upstream = torch.randn(5, 7, 24)
    layer(x).backward(upstream)

    a, b, scaling = layer.low_rank
    assert scaling == 12 / 4
    values, inside = layer.grid.fake_quantize_with_mask(layer.merged_weight())
    rows, grads = x.detach().double().reshape(35, 64), upstream.double().reshape(35, 24)
    weight_grad = torch.zeros(24, 64, dtype=torch.float64)
    for row, grad in zip(rows, grads, strict=True):
        weight_grad += torch.outer(grad, row)
    if stops_saturated:
        weight_grad[~inside] = 0
    assert (~inside).any() or rule in ("asymmetric", "searched")  # otherwise the mask is not put to the test
    torch.testing.assert_close(a.grad.double(), scaling * b.double().mT @ weight_grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(b.grad.double(), scaling * weight_grad @ a.double().mT, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double().reshape(35, 64), grads @ values.double(), rtol=1e-5, atol=1e-5)


def test_full_qat_trains_the_weight_in_float32_through_the_rounding() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 16, bias=False).to(torch.bfloat16)
    layer = QATLinear(linear, make_grid(QuantConfig(group_size=32), torch.bfloat16), trainable=True)
    assert layer.weight.dtype == torch.float32
    x = torch.randn(9, 64, dtype=torch.bfloat16)
    layer(x).sum().backward()
    _, inside = layer.grid.fake_quantize_with_mask(layer.weight.detach())
    expected = x.double().sum(0).expand(16, 64) * inside
    torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=0.02, atol=0.02)


def test_a_frozen_layer_passes_gradients_on_and_takes_none() -> None:
    layer = QATLinear(nn.Linear(64, 16), make_grid(QuantConfig(group_size=32), torch.float32), trainable=False)
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_between_forward_and_backward_a_gpu_keeps_no_quantized_copy_and_a_cpu_one_with_its_mask() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = lora_layer("signed").to(device)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        layer(torch.randn(2, 64, requires_grad=True, device=device))
    weight = layer.get_base_layer().weight
    held = [t for t in saved if t is not None and t.shape == (24, 64)]
    copies = [t.dtype for t in held if t.data_ptr() != weight.data_ptr()]
    assert len(held) == len(copies) + 1
    assert copies == ([] if device == "cuda" else [layer.grid.dtype, torch.bool])


def test_outside_the_rounding_the_adapter_is_merged_only_for_export() -> None:
    layer = lora_layer("signed")
    layer.get_base_layer().bias = None
    layer.outside = True
    a, b, scaling = layer.low_rank
    base = layer.grid.dequantize(layer.grid.quantize(layer.get_base_layer().weight))
    expected = base.double() + scaling * (b.double() @ a.double())
    torch.testing.assert_close(layer(torch.eye(64)).mT.double(), expected, rtol=1e-5, atol=1e-5)
    exported = layer.grid.dequantize(layer.quantize("layer"))
    merged = layer.linear.weight.double() + scaling * (b.double() @ a.double())
    torch.testing.assert_close(exported, layer.grid.dequantize(layer.grid.quantize(merged.float())))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rule", RULES)
def test_the_compiled_rounding_has_the_bits_of_the_plain_one(rule: str, dtype: torch.dtype) -> None:
    """On a GPU if there is one, where every pass is compiled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    grid = Int4Grid(64, dtype, rule)  # type: ignore[arg-type]
    weight, delta, grad = (torch.randn(48, 256, device=device) * 0.02 for _ in range(3))
    weight = weight.to(dtype)
    function = torch.compile(fake_quantize_sum_backward, dynamic=True, options=COMPILER_OPTIONS)
    values, through = function(weight, 0.1 * delta, grid, grad.to(dtype))
    plain_values, plain_through = fake_quantize_sum_backward(weight, 0.1 * delta, grid, grad.to(dtype))
    assert torch.equal(values, plain_values)
    assert torch.equal(through, plain_through)
