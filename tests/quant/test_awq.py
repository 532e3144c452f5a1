"""AWQ's scales and clipping against a float64 loop over the inputs themselves, and what they promise on any grid."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rayqd.config.sections import QuantConfig
from rayqd.quant import Grid, make_grid
from rayqd.quant.awq import SHARES, clip_groups, output_error, scale_columns, search_scales

G = 16
FORMATS: list[dict[str, Any]] = [
    *({"rule": rule, "group_size": G} for rule in ("signed", "absmax", "asymmetric", "searched")),
    {"format": "nvfp4"},
    {"format": "nf4", "group_size": 32},
    {"format": "fp4", "group_size": 32, "double_quant": True},
]


def grid_of(dtype: torch.dtype = torch.bfloat16, **fields: Any) -> Grid:
    return make_grid(QuantConfig.model_validate(fields), dtype)


def problem(num_rows: int = 12, num_columns: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [N, K], and inputs [200, K] whose channels differ in size by up to a factor of some hundred."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, num_columns, generator=generator) * 0.05
    sizes = torch.randn(num_columns, generator=generator).mul(1.5).exp()
    return weight, torch.randn(200, num_columns, generator=generator) * sizes


def second_moment(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.mT @ inputs


def rounded_signed(row: list[float]) -> list[float]:
    """GGUF Q4_0's rule with float32 scales, on one row."""
    values: list[float] = []
    for start in range(0, len(row), G):
        group = row[start : start + G]
        scale = float(torch.tensor(max(group, key=abs) / -8, dtype=torch.float32))
        values += [scale * max(-8, min(7, round(w / scale))) for w in group]
    return values


def error_by_hand(inputs: torch.Tensor, weight: torch.Tensor, scales: list[float]) -> float:
    """‖X (W - Q(W s) / s)ᵀ‖² token by token in Python's floats."""
    total = 0.0
    for row in weight.tolist():
        values = rounded_signed([w * s for w, s in zip(row, scales, strict=True)])
        error = [w - v / s for w, v, s in zip(row, values, scales, strict=True)]
        total += sum(sum(x * e for x, e in zip(token, error, strict=True)) ** 2 for token in inputs.tolist())
    return total


def test_the_scales_are_those_of_least_output_error_over_twenty_alphas() -> None:
    weight, inputs = problem(num_rows=4, num_columns=32)
    inputs = inputs[:40]
    magnitude = inputs.abs().mean(0)
    tried: dict[float, list[float]] = {}
    for i in range(20):
        powers = [m ** (i / 20) for m in magnitude.tolist()]
        middle = math.sqrt(max(powers) * min(powers))
        scales = [p / middle for p in powers]
        tried[error_by_hand(inputs, weight, scales)] = scales
    chosen = search_scales(
        [weight], second_moment(inputs), magnitude, grid_of(torch.float32, rule="signed", group_size=G)
    )
    best = tried[min(tried)]
    assert max(best) > 2 * min(best)  # not α = 0
    torch.testing.assert_close(chosen, torch.tensor(best), rtol=1e-5, atol=0)


@pytest.mark.parametrize("fields", FORMATS, ids=str)
def test_on_these_inputs_no_grid_does_worse_with_the_scales_than_without(fields: dict[str, Any]) -> None:
    grid, gained = grid_of(**fields), 0
    for seed in range(4):
        weight, inputs = problem(seed=seed)
        weight, moment = weight.to(torch.bfloat16), second_moment(inputs)
        scales = search_scales([weight], moment, inputs.abs().mean(0), grid)
        before = output_error(weight.float() - grid.fake_quantize(weight).float(), moment).sum()
        values = grid.fake_quantize(scale_columns(weight, scales)).float() / scales
        after = output_error(weight.float() - values, moment).sum()
        assert after <= before
        gained += bool(after < 0.9 * before)
    assert gained >= 3


def test_layers_with_the_same_inputs_get_the_scales_of_least_total_error() -> None:
    grid = grid_of(rule="signed", group_size=G)
    (one, inputs), (other, _) = problem(), problem(seed=1)
    moment, magnitude = second_moment(inputs), inputs.abs().mean(0)
    both = search_scales([one, other], moment, magnitude, grid)
    assert torch.equal(both, search_scales([torch.cat([one, other])], moment, magnitude, grid))


def test_what_the_producer_makes_of_the_scales_is_what_is_measured_and_returned() -> None:
    weight, inputs = problem()
    asked: list[torch.Tensor] = []

    def power_of_two(scales: torch.Tensor) -> torch.Tensor:
        asked.append(scales)
        return torch.exp2(scales.log2().round())

    grid = grid_of(rule="signed", group_size=G)
    scales = search_scales([weight], second_moment(inputs), inputs.abs().mean(0), grid, power_of_two)
    assert len(asked) == 20
    assert torch.equal(scales.log2(), scales.log2().round())


def test_a_channel_without_input_is_taken_for_the_weakest_that_has_one() -> None:
    weight, inputs = problem()
    inputs[:, 7] = 0
    magnitude = inputs.abs().mean(0)
    scales = search_scales([weight], second_moment(inputs), magnitude, grid_of(rule="signed", group_size=G))
    assert scales[7] == scales[magnitude > 0].min()
    nothing = torch.zeros_like(magnitude)
    scales = search_scales([weight], torch.zeros(64, 64), nothing, grid_of(rule="signed", group_size=G))
    assert torch.equal(scales, torch.ones(64))


@pytest.mark.parametrize("fields", FORMATS, ids=str)
def test_clipping_lessens_the_error_of_no_row_into_more(fields: dict[str, Any]) -> None:
    grid = grid_of(**fields)
    weight, inputs = problem(num_rows=40)
    weight, moment = weight.to(torch.bfloat16), second_moment(inputs)
    drawn_in = clip_groups(weight, moment, grid)
    before, after = (output_error(weight.float() - grid.fake_quantize(w).float(), moment) for w in (weight, drawn_in))
    assert drawn_in.dtype == weight.dtype
    if fields.get("format") == "nvfp4":  # rows share the tensor's scale
        assert after.sum() <= before.sum()
    else:
        assert (after <= before).all()
        assert after.sum() < before.sum()


def test_the_share_of_each_group_is_that_of_least_error_in_the_groups_own_outputs() -> None:
    weight, inputs = problem(num_rows=6, num_columns=G)  # a single group: its own outputs are the row's
    weight = weight.double().float()
    grid = grid_of(torch.float32, rule="absmax", group_size=G)
    drawn_in = clip_groups(weight, second_moment(inputs), grid)
    for row, ours in zip(weight, drawn_in, strict=True):
        errors: list[float] = []
        for share in SHARES:
            limit = share * float(row.abs().max())
            scale = float(torch.tensor(limit / 7.5, dtype=torch.float32))
            values = [scale * max(-8, min(7, round(max(-limit, min(limit, w)) / scale))) for w in row.tolist()]
            errors.append(float((inputs.double() @ (row.double() - torch.tensor(values).double())).square().sum()))
        chosen = SHARES[errors.index(min(errors))]
        assert float(ours.abs().max()) == pytest.approx(chosen * float(row.abs().max()), rel=1e-6)
