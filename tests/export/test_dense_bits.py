"""What is said of a dense checkpoint's bits is what its files hold, whatever dtype a run computes in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rayqd.export.write import dense_bits


@pytest.mark.parametrize(
    ("dtypes", "bits"),
    [((torch.bfloat16,), 16), ((torch.float32,), 32), ((torch.float16, torch.float32), 24)],  # half of each: 24
)
def test_bits_are_those_of_the_files(dtypes: tuple[torch.dtype, ...], bits: int, tmp_path: Path) -> None:
    save_file({str(dtype): torch.zeros(4, 4, dtype=dtype) for dtype in dtypes}, tmp_path / "model.safetensors")
    assert dense_bits(tmp_path) == bits
