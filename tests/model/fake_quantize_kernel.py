"""The Triton kernel against plain torch: on a GPU if there is one, else in Triton's interpreter.

`test_fake_quantize_triton` starts this with pytest in a process of its own, since the interpreter has to be chosen
before anything imports Triton (TRITON_INTERPRET=1). It adds a product up in another order than a tensor core does, and
knows nothing of registers: what it proves is the arithmetic after the merge, the masks and the places. The rest a GPU
proves.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from rayqd.model import fake_quantize as dispatch
from rayqd.model.low_rank import LowRank
from rayqd.model.qat_lora import QATLoraLinear
from rayqd.quant.int4 import Int4Grid

RULES = ["signed", "absmax", "asymmetric"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of which the interpreter is made


def random_low_rank(rank: int, rows: int, columns: int) -> LowRank:
    return LowRank(
        torch.randn(rank, columns, device=DEVICE) * 0.1, torch.randn(rows, rank, device=DEVICE) * 0.1, 64 / rank
    )


def check(weight: Tensor, low_rank: LowRank | None, grid: Int4Grid) -> Tensor:
    """Values, codes and mask are those of the plain path for the same merged weight; returns that weight."""
    from rayqd.model.fake_quantize_triton import fake_quantize

    once = fake_quantize(weight, low_rank, grid, with_merged=True)
    plain, inside = grid.fake_quantize_with_mask(once.merged)
    assert torch.equal(once.values, plain)
    assert torch.equal(once.values, grid.dequantize(grid.quantize(once.merged)))
    upstream = torch.randn(weight.shape, device=DEVICE).to(weight.dtype)
    gradient = upstream.clone()
    assert torch.equal(fake_quantize(weight, low_rank, grid, gradient=gradient).values, once.values)
    assert torch.equal(gradient, torch.where(inside, upstream, 0.0))
    return once.merged


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("rows", "columns", "group_size", "rank"),
    [(70, 320, 32, 8), (64, 576, 64, 32), (33, 384, 128, 5), (9, 512, 256, 40), (5, 128, 128, 100), (66, 48, 16, 16)],
)
def test_values_codes_and_mask_are_those_of_plain_torch(
    rows: int, columns: int, group_size: int, rank: int, rule: str, dtype: torch.dtype
) -> None:
    """Rows and columns that do not fill the last tile, ranks that do not fill a product, groups of a whole row."""
    torch.manual_seed(rows)
    weight = (torch.randn(rows, columns, device=DEVICE) * 0.02).to(dtype)
    low_rank = random_low_rank(rank, rows, columns)
    merged = check(weight, low_rank, Int4Grid(group_size, dtype, rule))
    a, b, scaling = (low_rank.a.double(), low_rank.b.double(), low_rank.scaling)
    exact = weight.double() + scaling * (b @ a)
    bound = 2.0**-18 * (weight.double().abs() + scaling * (b.abs() @ a.abs()))  # far below the 2^-11 of plain TF32
    assert ((merged.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_ties_zeros_and_extreme_magnitudes_round_as_in_plain_torch(rule: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    groups = torch.randn(64, 32)
    groups[0], groups[1] = 0.0, -0.0
    groups[2:10] = torch.randint(-8, 9, (8, 32)) / 16  # both ends alike, codes exact
    groups[10:18] = (torch.randint(-16, 17, (8, 32)) / 2) * 0.03125  # half way between codes
    groups[18:26] *= 2.0 ** torch.arange(-24, -16).unsqueeze(1)  # scales that are not normal float16 numbers
    if dtype != torch.float16:
        # The interpreter does not know bfloat16's numbers that are not normal.
        smallest = -146 if dtype == torch.float32 or DEVICE.type == "cuda" else -110
        groups[26:42] *= 2.0 ** torch.linspace(smallest, -60, 16).round().unsqueeze(1)
        groups[42:52] *= 2.0 ** torch.linspace(60, 120, 10).round().unsqueeze(1)
    groups[52, 1:] = groups[53, :-1] = 0.0  # one weight alone
    groups[54] = groups[54].abs()
    groups[55] = -groups[55].abs()
    for group_size in (8, 32, 64):
        check(groups.reshape(16, 128).to(DEVICE, dtype), None, Int4Grid(group_size, dtype, rule))


@pytest.mark.parametrize("rule", RULES)
def test_division_by_a_groups_scale_rounds_as_ieee_says(rule: str) -> None:
    """A million quotients, interpreted an eighth, in float32, where a last bit of a scale is not rounded away."""
    torch.manual_seed(2)
    rows = 8192 if DEVICE.type == "cuda" else 1024
    scales = torch.exp(torch.empty(rows, 1, device=DEVICE).uniform_(-40, 40))
    halves = torch.randint(-15, 16, (rows, 128), device=DEVICE) / 2
    weight = halves * scales * (1 + torch.randint(-2, 3, halves.shape, device=DEVICE) * 2.0**-24)
    check(weight.reshape(-1, 1024), None, Int4Grid(128, torch.float32, rule))


@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_stays_so(rule: str) -> None:
    from rayqd.model.fake_quantize_triton import fake_quantize

    weight = torch.randn(4, 128, device=DEVICE)
    weight[0, 3], weight[1, 5], weight[2, 7] = torch.nan, torch.inf, -torch.inf
    values = fake_quantize(weight, None, Int4Grid(32, torch.bfloat16, rule)).values
    assert not values[0, 3].isfinite()
    assert not values[1, 5].isfinite()
    assert not values[2, 7].isfinite()
    assert values[3].isfinite().all()


@pytest.mark.parametrize("stops_saturated", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_the_layer_trains_what_it_exports(rule: str, stops_saturated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayqd.model.fake_quantize_triton import fake_quantize

    monkeypatch.setattr(dispatch, "_kernel", lambda weight, grid: fake_quantize)
    torch.manual_seed(3)
    linear = nn.Linear(128, 24, bias=False).requires_grad_(False)
    layer = QATLoraLinear(linear, "default", config=LoraConfig(r=4, lora_alpha=12), r=4, lora_alpha=12)
    layer.set_quantizer(Int4Grid(32, torch.float32, rule), stops_saturated=stops_saturated)
    nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    layer.to(DEVICE)
    assert torch.equal(layer(torch.eye(128, device=DEVICE)).mT, layer.grid.dequantize(layer.quantize("layer")))

    x = torch.randn(5, 7, 128, device=DEVICE, requires_grad=True)
    upstream = torch.randn(5, 7, 24, device=DEVICE)
    layer(x).backward(upstream)
    a, b, scaling = layer.low_rank
    values, inside = layer.grid.fake_quantize_with_mask(layer.merged_weight())
    grads, inputs = upstream.double().reshape(35, 24), x.detach().double().reshape(35, 128)
    passed = (grads.mT @ inputs) * (inside if stops_saturated else 1)
    torch.testing.assert_close(a.grad.double(), scaling * b.double().mT @ passed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b.grad.double(), scaling * passed @ a.double().mT, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad.double().reshape(35, 128), grads @ values.double(), rtol=1e-4, atol=1e-4)
