"""The Triton kernel against plain torch: on a GPU if there is one, else in Triton's interpreter, in another process.

The interpreter adds a product up in another order than a tensor core does, and knows nothing of registers: what it
proves is the arithmetic after the merge, the masks and the places. The rest a GPU proves with the same tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

from rayqd.model import rounding
from rayqd.model.low_rank import LowRank
from rayqd.model.qat import QATLoraLinear
from rayqd.quant import Grid
from rayqd.quant.int4 import Int4Grid
from rayqd.quant.nf4 import NF4

RULES = ["signed", "absmax", "asymmetric"]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of which the interpreter is made

kernel = pytest.mark.skipif(not RUNS, reason="runs in Triton's interpreter, which the first test starts")


@pytest.mark.skipif(RUNS, reason="this is that process, or a GPU")
def test_in_tritons_interpreter() -> None:
    """It has to be chosen before anything imports Triton."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        command, cwd=root, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert " passed" in ran.stdout


def random_low_rank(rank: int, rows: int, columns: int) -> LowRank:
    return LowRank(
        torch.randn(rank, columns, device=DEVICE) * 0.1, torch.randn(rows, rank, device=DEVICE) * 0.1, 64 / rank
    )


def check(weight: Tensor, low_rank: LowRank | None, grid: Int4Grid) -> Tensor:
    """Values, codes and mask are those of the plain path for the same merged weight; returns that weight."""
    from rayqd.model.rounding_triton import rounded

    once = rounded(weight, low_rank, grid, with_merged=True)
    plain, inside = grid.fake_quantize_with_mask(once.merged)
    assert torch.equal(once.values, plain)
    assert torch.equal(once.values, grid.dequantize(grid.quantize(once.merged)))
    upstream = torch.randn(weight.shape, device=DEVICE).to(weight.dtype)
    gradient = upstream.clone()
    assert torch.equal(rounded(weight, low_rank, grid, gradient=gradient).values, once.values)
    assert torch.equal(gradient, torch.where(inside, upstream, 0.0))
    return once.merged


@kernel
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


@kernel
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


@kernel
@pytest.mark.parametrize("rule", RULES)
def test_division_by_a_groups_scale_rounds_as_ieee_says(rule: str) -> None:
    """A million quotients, in float32, where a last bit of a scale is not rounded away."""
    torch.manual_seed(2)
    scales = torch.exp(torch.empty(8192, 1, device=DEVICE).uniform_(-40, 40))
    halves = torch.randint(-15, 16, (8192, 128), device=DEVICE) / 2
    weight = halves * scales * (1 + torch.randint(-2, 3, halves.shape, device=DEVICE) * 2.0**-24)
    check(weight.reshape(1024, 1024), None, Int4Grid(128, torch.float32, rule))


@kernel
@pytest.mark.parametrize("rule", RULES)
def test_what_is_not_finite_stays_so(rule: str) -> None:
    from rayqd.model.rounding_triton import rounded

    weight = torch.randn(4, 128, device=DEVICE)
    weight[0, 3], weight[1, 5], weight[2, 7] = torch.nan, torch.inf, -torch.inf
    values = rounded(weight, None, Int4Grid(32, torch.bfloat16, rule)).values
    assert not values[0, 3].isfinite()
    assert not values[1, 5].isfinite()
    assert not values[2, 7].isfinite()
    assert values[3].isfinite().all()


@kernel
@pytest.mark.parametrize("stops_saturated", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_the_layer_trains_what_it_exports(rule: str, stops_saturated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rayqd.model import rounding_triton

    monkeypatch.setattr(rounding, "_kernel", lambda weight, grid: rounding_triton.rounded)
    torch.manual_seed(3)
    linear = nn.Linear(128, 24, bias=False).requires_grad_(False)
    layer = QATLoraLinear(linear, "default", config=LoraConfig(r=4, lora_alpha=12), r=4, lora_alpha=12)
    layer.set_rounding(Int4Grid(32, torch.float32, rule), stops_saturated=stops_saturated)
    nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    layer.to(DEVICE)
    assert torch.equal(layer(torch.eye(128, device=DEVICE)).mT, layer.grid.dequantize(layer.quantized("layer")))

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


def test_the_kernel_takes_the_grids_it_knows() -> None:
    from rayqd.model.rounding_triton import supports
    from rayqd.quant.blockwise import BlockwiseGrid

    def takes(grid: Grid) -> bool:
        return supports(torch.empty(8, 640), grid)

    assert all(takes(Int4Grid(128, torch.bfloat16, rule)) for rule in RULES)
    assert not takes(Int4Grid(128, torch.bfloat16, "searched"))
    assert not takes(Int4Grid(640, torch.bfloat16, "signed"))  # no power of two
    assert not takes(Int4Grid(256, torch.bfloat16, "signed"))  # does not divide a row: the plain path says so
    assert not takes(BlockwiseGrid(quant_group_size=64, dtype=torch.bfloat16, codebook=NF4))


def compiled_for_h100(rule: str) -> tuple[str, int]:
    """PTX for bfloat16, groups of 128, rank 32, and bytes of shared memory; fails where a block needs too much."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rayqd.model import rounding_triton

    constants = {"RANK": 32, "RULE": rule, "GROUP": 128, "BLOCK_ROWS": 64, "BLOCK_COLUMNS": 128, "BLOCK_RANK": 32}
    constants |= {"PRECISION": rounding_triton.PRECISION, "CAST_TRUNCATES": False}
    types = dict.fromkeys(rounding_triton._kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("weight", "values", "gradient"), "*bf16") | dict.fromkeys(("a", "b", "merged"), "*fp32")
    types["scaling"] = "fp32"
    names = list(types)
    source = ASTSource(
        fn=rounding_triton._kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False, "maxnreg": rounding_triton.MAX_REGISTERS}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return compiled.asm["ptx"], compiled.metadata.shared


@pytest.mark.slow
@pytest.mark.skipif(RUNS, reason="the interpreter's functions do not compile; a GPU compiles them anyway")
@pytest.mark.parametrize("rule", RULES)
def test_compiled_for_an_h100_no_product_is_fused_into_a_sum_and_three_blocks_fit(rule: str) -> None:
    """Triton brings the compiler along, so this needs no GPU."""
    ptx, shared_bytes = compiled_for_h100(rule)
    fused = ptx.count("fma.rn.f32")
    assert fused == 4 * 64  # the four of a division, for each of a thread's 64 weights
    assert "div.full" not in ptx
    assert "div.approx" not in ptx
    assert "wgmma" in ptx
    assert 3 * shared_bytes <= 227 * 1024
