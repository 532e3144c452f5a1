"""The Triton kernel: it computes what plain torch does, takes the grids it knows, and compiles to what it should."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rayqd.quant import Grid
from rayqd.quant.blockwise import BlockwiseGrid
from rayqd.quant.codebooks import NF4
from rayqd.quant.int4 import Int4Grid

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not for this machine")

RULES = ["signed", "absmax", "asymmetric"]


@pytest.mark.slow
def test_the_kernel_computes_what_plain_torch_does() -> None:
    """In a process of its own: Triton's interpreter has to be chosen before anything imports Triton."""
    cases = Path(__file__).with_name("fake_quantize_kernel.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        command, cwd=cases.parents[2], env=os.environ | interpreted, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "75 passed" in ran.stdout  # none was skipped


def test_the_kernel_takes_the_grids_it_knows() -> None:
    from rayqd.model.fake_quantize_triton import supports

    def takes(grid: Grid) -> bool:
        return supports(torch.empty(8, 640), grid)

    assert all(takes(Int4Grid(128, torch.bfloat16, rule)) for rule in RULES)
    assert not takes(Int4Grid(128, torch.bfloat16, "searched"))
    assert not takes(Int4Grid(640, torch.bfloat16, "signed"))  # no power of two
    assert not takes(Int4Grid(256, torch.bfloat16, "signed"))  # does not divide a row: the plain path says so
    assert not takes(BlockwiseGrid(quant_group_size=64, dtype=torch.bfloat16, codebook=NF4))


def compiled_for_h100(rule: str) -> tuple[str, int]:
    """PTX for bfloat16, groups of 128 and rank 32, and bytes of shared memory. The compiler itself needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rayqd.model import fake_quantize_triton

    constants = {"RANK": 32, "RULE": rule, "GROUP": 128, "BLOCK_ROWS": fake_quantize_triton.BLOCK_ROWS}
    constants |= {"BLOCK_COLUMNS": 128, "BLOCK_RANK": 32}
    constants |= {"PRECISION": fake_quantize_triton.PRECISION, "CAST_TRUNCATES": False}
    types = dict.fromkeys(fake_quantize_triton._kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("weight", "values", "gradient"), "*bf16") | dict.fromkeys(("a", "b", "merged"), "*fp32")
    types["scaling"] = "fp32"
    names = list(types)
    source = ASTSource(
        fn=fake_quantize_triton._kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": fake_quantize_triton.NUM_WARPS, "num_stages": 1, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return compiled.asm["ptx"], compiled.metadata.shared


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_compiled_for_an_h100_no_product_is_fused_into_a_sum_and_many_blocks_fit(rule: str) -> None:
    from rayqd.model import fake_quantize_triton

    ptx, shared_bytes = compiled_for_h100(rule)
    fused = ptx.count("fma.rn.f32")
    weights_a_thread = (
        fake_quantize_triton.BLOCK_ROWS * fake_quantize_triton.BLOCK_COLUMNS // (32 * fake_quantize_triton.NUM_WARPS)
    )
    assert fused == 4 * weights_a_thread  # the four of a division
    assert "div.full" not in ptx
    assert "div.approx" not in ptx
    assert "mma.sync" in ptx
    assert 4 * shared_bytes <= 227 * 1024
