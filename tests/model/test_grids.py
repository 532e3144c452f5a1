"""One NVFP4 tensor scale for layers that an engine fuses, taken from the first weights and held."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rayqd.commands.quantize import quantize
from rayqd.config.sections import QuantConfig
from rayqd.errors import ModelError
from rayqd.export.compressed_tensors import read_quantized
from rayqd.learner.rollout_weights import pack_weights
from rayqd.model.fake_quantize import COMPILER_OPTIONS, fake_quantize_sum_backward
from rayqd.model.grids import assign_grids
from rayqd.model.student import Student
from rayqd.quant import make_grid
from rayqd.quant.nvfp4 import NVFP4Grid

BFLOAT16 = torch.bfloat16


def linears(**largest: float) -> dict[str, Tensor]:
    """Weights of layers of one block whose largest magnitude is given; of each the rest is small."""
    layers: dict[str, Tensor] = {}
    for name, amax in largest.items():
        linear = nn.Linear(32, 4, bias=False).requires_grad_(False)
        linear.weight.fill_(1e-3)
        linear.weight[2, 5] = -amax
        layers[f"model.layers.0.{name.replace('__', '.')}"] = linear.weight
    return layers


def test_layers_with_one_input_share_the_scale_of_their_largest_with_room_to_double() -> None:
    layers = linears(attn__q_proj=2.0, attn__k_proj=10.5, attn__v_proj=0.1, attn__o_proj=2.0, mlp__up_proj=2688.0)
    grids = assign_grids(layers, make_grid(QuantConfig(format="nvfp4"), BFLOAT16))
    scales = {name.rpartition(".")[2]: grid.tensor_scale.item() for name, grid in grids.items()}
    # 10.5 / (448 · 6) = 2^-8 exactly, 2 / 2688 = 0.00074 < 2^-10; twice that is the room
    assert scales == {
        "q_proj": 2.0**-7,
        "k_proj": 2.0**-7,
        "v_proj": 2.0**-7,
        "o_proj": 2.0**-9,
        "up_proj": 2.0,
    }


def test_layers_of_different_blocks_do_not_share() -> None:
    layers = linears(q_proj=1.0) | {f"model.layers.1.{n[15:]}": v for n, v in linears(q_proj=64.0).items()}
    grids = assign_grids(layers, make_grid(QuantConfig(format="nvfp4"), BFLOAT16))
    assert len({grid.tensor_scale.item() for grid in grids.values()}) == 2


@pytest.mark.parametrize("quant", [QuantConfig(), QuantConfig(format="nf4", group_size=64, rule="absmax")])
def test_other_formats_have_one_grid_for_all_layers(quant: QuantConfig) -> None:
    grid = make_grid(quant, BFLOAT16)
    assert set(assign_grids(linears(q_proj=1.0, o_proj=9.0), grid).values()) == {grid}


def test_a_weight_that_is_not_finite_is_refused_by_name() -> None:
    layers = linears(q_proj=1.0, k_proj=1.0)
    layers["model.layers.0.k_proj"][0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"model\.layers\.0\.k_proj holds 1 values that are inf or nan"):
        assign_grids(layers, make_grid(QuantConfig(format="nvfp4"), BFLOAT16))


def test_training_never_moves_the_tensor_scale_and_forward_uses_it(tiny_config: Any, tiny_model: Path) -> None:
    config = tiny_config(quant={"format": "nvfp4", "group_size": 16})
    student = Student.load(tiny_model, config)
    first = {name: weight.tensor_scale for name, weight in student.quantized_layers()}
    assert len({scale.item() for scale in first.values()}) > 1
    generator = torch.Generator().manual_seed(1)
    for parameter in student.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    for name, weight in student.quantized_layers():
        assert weight.tensor_scale == first[name]
        layer = student.layers[name]
        picked = layer(torch.eye(weight.codes.shape[1], dtype=BFLOAT16)).mT
        assert torch.equal(picked, student.grid.dequantize(weight)), name
    q, k = (pack_weights(student)[f"model.layers.0.self_attn.{p}_proj.weight_global_scale"].bits for p in "qk")
    assert q == k


def test_what_quantize_exports_has_the_shared_scales(tiny_config: Any) -> None:
    config = tiny_config(quant={"format": "nvfp4", "group_size": 16, "method": "rtn"})
    quantize(config, Console(file=io.StringIO()))
    exported = read_quantized(config.run_dir / "export")
    for fused in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        for block in range(2):
            assert len({exported[f"model.layers.{block}.{part}"].tensor_scale.item() for part in fused}) == 1


def _compile_for_many_tensor_scales() -> None:
    function = torch.compile(fake_quantize_sum_backward, dynamic=True, options=COMPILER_OPTIONS)
    torch.manual_seed(0)
    for exponent in range(12):
        grid = NVFP4Grid(BFLOAT16, torch.tensor(2.0 ** (exponent - 20)))
        weight = (torch.randn(32 + 16 * (exponent % 3), 64) * 0.02).to(BFLOAT16)
        delta, grad = torch.randn(weight.shape) * 0.002, torch.randn(weight.shape).to(BFLOAT16)
        for actual, expected in zip(
            function(weight, delta, grid, grad),
            fake_quantize_sum_backward(weight, delta, grid, grad),
            strict=True,
        ):
            assert torch.equal(actual, expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["recompile_limit"] == {}


@pytest.mark.slow
def test_many_tensor_scales_are_one_compilation_with_the_bits_of_the_plain_code() -> None:
    """As on a GPU, where a dozen powers of two would pass the compiler's limit of eight were they numbers to it.

    In a process of its own, since other tests leave the compiler's caches and switches as they please."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_compile_for_many_tensor_scales).result()
