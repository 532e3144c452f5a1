"""CPUs without AVX-512: vLLM's AVX2 library, forced in a process of its own, has no 4-bit kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rayqd.config.resolved import to_toml
from rayqd.rollout.kernels import WeightForm, explain_missing_cpu_kernel
from rayqd.rollout.weights import DenseLoader, PackedLoader, choose_weight_loader

LACKS = "vLLM's library for this CPU has no cpu_gemm_wna16"
FORCE_AVX2 = "import torch; torch.cpu._is_avx512_supported = torch.cpu._is_amx_tile_supported = lambda: False\n"
WRITE = """
import sys
from rayqd.rollout.kernels import explain_missing_cpu_kernel
print("why:", explain_missing_cpu_kernel())
import numpy as np
from rayqd.config.load import load_config
from rayqd.rollout.engine import SamplingRequest
from rayqd.rollout.engine_makers import vllm_engine_maker
engine = vllm_engine_maker(load_config(["@" + sys.argv[1]]), 0.3)()
ids = np.arange(5, 15, dtype=np.int32)
request = SamplingRequest(prompt_ids=ids, seed=0, temperature=0.0, min_new_tokens=3, max_new_tokens=3)
print("wrote:", engine.generate([request])[0].token_ids.tolist(), type(engine._weight_loader).__name__)
print("form:", engine.description)
"""


def run(code: str, *arguments: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_a_machine_without_the_kernel_takes_dense_weights(tiny_config: Any) -> None:
    config = tiny_config()
    assert isinstance(choose_weight_loader(config), PackedLoader)
    assert isinstance(choose_weight_loader(config, WeightForm(dtype="bfloat16", reason="none here")), DenseLoader)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM runs on the GPU")
def test_the_engine_s_own_registry_says_whether_the_kernel_is_there() -> None:
    why = explain_missing_cpu_kernel()
    assert (why == "") == torch.cpu._is_avx512_supported()
    assert why.startswith("" if torch.cpu._is_avx512_supported() else LACKS)


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM runs on the GPU")
def test_an_engine_on_avx2_writes_with_dense_weights_and_says_why(tiny_config: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(to_toml(tiny_config()))
    output, _ = run(FORCE_AVX2 + WRITE, str(file))
    assert f"why: {LACKS}" in output
    assert "DenseLoader" in output
    assert f"form: dense bfloat16 weights, as {LACKS}, which needs AVX-512\n" in output


KERNEL_WITH_AMX = """
import torch
from rayqd.rollout.kernels import explain_missing_cpu_kernel
assert explain_missing_cpu_kernel() == ""
from vllm import _custom_ops as ops
codes = torch.full((4, 64 * 16 // 8), 0x99999999 - 2**32, dtype=torch.int32)  # 9, of which 8 stands for 0
x = torch.arange(64.0).bfloat16()[None]
y = ops.cpu_gemm_wna16(
    input=x, q_weight=codes, scales=torch.ones(2, 64).bfloat16(), zeros=None, bias=None, pack_factor=8, isa_hint="amx"
)
print("sums:", y.unique().tolist())
"""


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.skipif(not torch.cpu._is_amx_tile_supported(), reason="this CPU has no AMX")
def test_the_kernel_may_use_amx_in_a_process_that_has_computed_nothing_else() -> None:
    """Without the request to Linux it is an illegal instruction."""
    output, _ = run(KERNEL_WITH_AMX)
    assert "sums: [2016.0]" in output  # 0 + 1 + ... + 63, which bfloat16 holds
