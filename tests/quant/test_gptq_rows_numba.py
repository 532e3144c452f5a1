"""GPTQ's inner loops as Numba compiles them, against plain torch and a float64 loop."""

from __future__ import annotations

import math

import pytest
import torch

from rayqd.quant.gptq.columns import round_one_by_one
from tests.quant.gptq_blocks import make_exact_block, make_usual_block, targets_of

rows_numba = pytest.importorskip("rayqd.quant.gptq.rows_numba", reason="Numba is not installed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_columns", "num_rows"), [(8, 1), (16, 37), (64, 100), (96, 33)])
def test_where_all_sums_are_exact_the_bits_are_the_same(num_columns: int, num_rows: int, dtype: torch.dtype) -> None:
    columns, scales, wide = make_exact_block(num_columns, num_rows)
    factor, targets = wide[:, :num_columns], targets_of(scales)
    plain, own = columns.clone(), columns.clone()
    expected = plain, *round_one_by_one(plain, factor, targets, dtype)
    actual = own, *rows_numba.round_columns(own, factor, targets.scales, targets.fewest, targets.most, dtype)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert not torch.equal(own, columns)


def test_on_usual_weights_almost_every_code_is_the_same() -> None:
    columns, factor = make_usual_block()
    targets = targets_of(torch.full_like(columns, 0.3))
    nearest, _ = round_one_by_one(columns.clone(), factor, targets, torch.bfloat16)
    own, _ = rows_numba.round_columns(
        columns.clone(), factor, targets.scales, targets.fewest, targets.most, torch.bfloat16
    )
    assert (nearest == own).float().mean() > 0.999


def test_squared_errors_are_those_of_a_float64_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    size, num_rows, num_candidates = 16, 21, 3
    columns = torch.randn(size, num_rows, generator=generator)
    precision = torch.rand(size, generator=generator) + 0.1
    scales = torch.randn(num_candidates, num_rows, generator=generator).sign() * 0.3
    fewest, most = torch.full_like(scales, -7), torch.full_like(scales, 8)
    places = torch.randint(0, size, (num_candidates, 1, num_rows), generator=generator)
    exist = torch.rand(places.shape, generator=generator) < 0.7
    steps = torch.full(places.shape, -8.0)
    actual = rows_numba.squared_errors(columns, precision, scales, fewest, most, places, exist, steps)
    for s in range(num_candidates):
        for n in range(num_rows):
            total = 0.0
            for j in range(size):
                scale = scales[s, n].item()
                step = min(max(round(columns[j, n].item() / scale), -7), 8)
                if exist[s, 0, n] and places[s, 0, n] == j:
                    step = -8
                total += precision[j].item() * (step * scale - columns[j, n].item()) ** 2
            assert math.isclose(actual[s, n].item(), total, rel_tol=2e-6)
