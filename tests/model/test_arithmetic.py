"""What a machine multiplies fastest is told from the machine, and what it cannot multiply is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rayqd.errors import ModelError
from rayqd.model import arithmetic
from rayqd.model.arithmetic import Driver, Gpu, choose_dtype, explain_old_driver, explain_unknown_cpu, native_bfloat16
from rayqd.model.load import load_model

H100, T4 = Gpu(name="NVIDIA H100", capability=(9, 0)), Gpu(name="Tesla T4", capability=(7, 5))
CHOOSE = "from rayqd.model.arithmetic import choose_dtype; print(*choose_dtype(), sep=': ')"


def fake_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    monkeypatch.setattr(arithmetic, "find_gpus", lambda: gpus)


def test_a_gpu_with_bfloat16_is_asked_before_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "native_bfloat16", tuple)
    fake_gpus(monkeypatch, H100)
    assert choose_dtype() == ("bfloat16", "NVIDIA H100 has it")


def test_one_old_gpu_makes_it_float32_as_float16_has_no_loss_scale_here(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, H100, T4)
    assert choose_dtype() == ("float32", "Tesla T4 (compute capability 7.5) has no bfloat16")


def test_an_old_gpu_refuses_bfloat16_before_the_model_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_gpus(monkeypatch, T4)
    with pytest.raises(ModelError, match=r"^Tesla T4 \(compute capability 7\.5\) has no bfloat16: use --model\.dtype"):
        load_model(tmp_path / "nothing is there", "bfloat16")
    with pytest.raises(OSError, match="nothing is there"):
        load_model(tmp_path / "nothing is there", "float32")


@pytest.mark.parametrize(
    ("flags", "found"),
    [("fpu avx2 avx512f", ()), ("avx512_bf16 avx2", ("avx512_bf16",)), ("asimd bf16", ("bf16",)), ("", ())],
)
def test_a_cpu_has_bfloat16_when_linux_says_so(
    flags: str, found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    assert native_bfloat16(tmp_path / "cpuinfo") == found


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU decides")
@pytest.mark.parametrize("limit", ["ATEN_CPU_CAPABILITY=avx2", "ONEDNN_MAX_CPU_ISA=AVX2"])
def test_a_cpu_held_to_avx2_is_one_with_avx2(limit: str) -> None:
    name, _, value = limit.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", CHOOSE], env=os.environ | {name: value}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "float32: this CPU computes bfloat16 in software, which is slower\n"


@pytest.mark.parametrize(
    ("driver", "cuda", "refused"),
    [
        (Driver(cuda=(12, 4), gpus=(H100,)), "13.0", True),
        (Driver(cuda=(13, 0), gpus=(H100,)), "13.2", False),  # within a major version any driver runs any CUDA
        (Driver(cuda=(12, 4), gpus=()), "13.0", False),
        (Driver(cuda=(12, 4), gpus=(H100,)), None, False),
        (None, "13.0", False),
    ],
)
def test_a_driver_older_than_torchs_cuda_is_refused(driver: Driver | None, cuda: str | None, refused: bool) -> None:
    reason = explain_old_driver(driver, cuda)
    assert bool(reason) == refused
    if refused:
        assert reason.startswith("NVIDIA's driver runs CUDA up to 12.4, and torch ")
        assert "built for CUDA 13.0, so that it sees no GPU: update the driver" in reason


def test_a_cpu_that_there_is_no_code_for_is_refused() -> None:
    assert "has code for a CPU of kind mips64" in explain_unknown_cpu("mips64", frozenset())
    assert explain_unknown_cpu("x86_64", frozenset({"sse4_2"})).startswith("this CPU has no AVX2")
    assert explain_unknown_cpu("x86_64", frozenset({"avx2"})) == ""
    assert explain_unknown_cpu("aarch64", frozenset({"asimd"})) == ""
