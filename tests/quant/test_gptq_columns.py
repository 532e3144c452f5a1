"""The column recursion's Triton kernel, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not for this machine")
def test_the_kernel_rounds_as_plain_torch_does() -> None:
    cases = Path(__file__).with_name("gptq_columns_kernel.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        command, cwd=cases.parents[2], env=os.environ | interpreted, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "14 passed" in ran.stdout  # none was skipped
