"""Learned rounding: it begins as the grid's own, the grid finds again what was learned, and the gradient is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rayqd.quant.int4 import Int4Grid, Rule
from rayqd.quant.learned_rounding import LearnedRounding

GROUP = 32
RULES: tuple[Rule, ...] = ("signed", "absmax", "asymmetric", "searched")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_weight(dtype: torch.dtype, seed: int) -> Tensor:
    """With a zero group, groups of one value, and groups of one sign."""
    weight = torch.randn(16, 4 * GROUP, generator=torch.Generator().manual_seed(seed)).to(dtype)
    weight[0, :GROUP] = 0
    weight[1, :GROUP] = 0.5
    weight[2, :GROUP] = -0.25
    weight[3].abs_()
    weight[4].abs_().neg_()
    return weight


def learned(weight: Tensor, grid: Int4Grid, seed: int) -> LearnedRounding:
    rounding, random = LearnedRounding(weight, grid), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        rounding.offsets.uniform_(-0.6, 0.6, generator=random)
        rounding.shares.uniform_(0.5, 1.1, generator=random)
    rounding.clamp_()
    return rounding


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "searched"])  # which begins without its search
def test_it_begins_as_rounding_to_nearest(rule: Rule, dtype: torch.dtype) -> None:
    grid, weight = Int4Grid(GROUP, dtype, rule), make_weight(dtype, 0)
    assert torch.equal(LearnedRounding(weight, grid).values(), grid.dequantize(grid.quantize(weight)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_the_grid_rounds_the_weights_to_the_values_that_were_learned(rule: Rule, dtype: torch.dtype, seed: int) -> None:
    grid = Int4Grid(GROUP, dtype, rule)
    rounding = learned(make_weight(dtype, seed), grid, seed)
    values = rounding.values()
    assert not torch.equal(values, LearnedRounding(make_weight(dtype, seed), grid).values())
    for weights in (rounding.weights(), rounding.weights().to(dtype)):  # a model's own are in its dtype
        assert torch.equal(grid.dequantize(grid.quantize(weights)), values)


def test_half_up_and_half_down_are_as_far_as_an_offset_goes() -> None:
    grid, weight = Int4Grid(GROUP, torch.float32, "signed"), make_weight(torch.float32, 1)
    nearest = grid.quantize(weight)
    for end in (-0.5, 0.5):
        rounding = LearnedRounding(weight, grid)
        with torch.no_grad():
            rounding.offsets.fill_(2 * end)
        rounding.clamp_()
        codes = grid.quantize(rounding.weights()).codes.int()
        moved = codes - nearest.codes.int()
        assert moved.abs().max() == 1
        assert bool((moved[5:] * end >= 0).all())


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_is_that_of_a_loop_with_straight_through_roundings(rule: Rule) -> None:
    grid = Int4Grid(GROUP, torch.float32, rule)
    weight, pull = make_weight(torch.float32, 2)[5:7], torch.randn(2, 4 * GROUP)
    rounding = learned(weight, grid, 2)
    (rounding.values() * pull).sum().backward()
    assert rounding.offsets.grad is not None
    assert rounding.shares.grad is not None
    for n in range(2):
        for g in range(4):
            part = slice(g * GROUP, (g + 1) * GROUP)
            offsets, share = by_hand(weight[n, part].double(), pull[n, part].double(), rounding, (n, g), rule)
            assert torch.allclose(rounding.offsets.grad[n, g].double(), offsets, atol=1e-5)
            assert float(rounding.shares.grad[n, g, 0]) == pytest.approx(share, rel=1e-3, abs=1e-4)


def by_hand(
    w: Tensor, pull: Tensor, rounding: LearnedRounding, at: tuple[int, int], rule: Rule
) -> tuple[Tensor, float]:
    """The gradients of one group: value = scale · step, step = w / scale + offset where it is not at an end."""
    share, offsets = float(rounding.shares[at][0].detach()), rounding.offsets[at].detach().double()
    low, high = (share * min(float(w.min()), 0.0), share * max(float(w.max()), 0.0))
    extreme = max((low, high), key=abs)
    if rule == "asymmetric":
        scale = (high - low) / 15
        zero = min(max(-8 - round(low / scale), -8), 7)
        ends = [low / scale, high / scale]
        decides = {int(w.argmin()), int(w.argmax())}
    else:
        scale, zero = (abs(extreme) / 7.5 if rule == "absmax" else extreme / -8), 0
        ends = sorted([-abs(extreme) / scale, abs(extreme) / scale])
        decides = {int(w.abs().argmax())}
    fewest, most = (min(max(round(end), -8 - zero), 7 - zero) for end in ends)
    of_offsets, of_scale = torch.zeros(GROUP, dtype=torch.float64), 0.0
    for j in range(GROUP):
        x = float(w[j]) / scale + (0.0 if j in decides else float(offsets[j]))
        step = min(max(round(x), fewest), most)
        inside = fewest <= round(x) <= most
        of_offsets[j] = scale * float(pull[j]) * (inside and j not in decides)
        of_scale += float(pull[j]) * (step - (float(w[j]) / scale if inside else 0.0))
    return of_offsets, of_scale * scale / share
