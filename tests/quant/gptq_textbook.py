"""The textbook's GPTQ in float64 loops, and problems for it."""

from __future__ import annotations

import torch

from rayqd.config.sections import QuantConfig
from rayqd.quant import make_grid
from rayqd.quant.int4 import SHARES, Int4Grid

G = 16


def grid_of(rule: str, scale_dtype: torch.dtype = torch.bfloat16) -> Int4Grid:
    grid = make_grid(QuantConfig.model_validate({"rule": rule, "group_size": G}), scale_dtype)
    assert isinstance(grid, Int4Grid)
    return grid


def problem(num_rows: int = 20, num_columns: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [N, K] and correlated inputs [256, K]."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, num_columns, generator=generator) * 0.05
    mixing = torch.randn(num_columns, num_columns, generator=generator)
    return weight, torch.randn(256, num_columns, generator=generator) @ mixing


def hessian_of(inputs: torch.Tensor) -> torch.Tensor:
    return 2 / len(inputs) * inputs.mT @ inputs


def ends_of(group: torch.Tensor, rule: str) -> dict[int, float]:
    """Which elements of a group decide its scale, and their values in bfloat16."""
    deciding = [int(group.abs().argmax())]
    if rule == "asymmetric":
        deciding = [i for i, end in ((int(group.argmin()), -1), (int(group.argmax()), 1)) if group[i] * end > 0]
    return {i: float(group[i].to(torch.bfloat16)) for i in deciding}


def textbook(weight: torch.Tensor, hessian: torch.Tensor, rule: str, damping: float) -> tuple[torch.Tensor, ...]:
    """Optimal brain surgery row by row: after each column, the inverse of what is left of H, inverted anew.

    One deviation, on purpose: an element that decides a group's scale keeps its code, or no weight has that scale.
    """
    num_rows, num_columns = weight.shape
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(num_columns)
    codes = torch.zeros(num_rows, num_columns, dtype=torch.int64)
    scales = torch.zeros(num_rows, num_columns // G, dtype=torch.float64)
    for n in range(num_rows):
        w = weight[n].double().clone()
        scale, zero, low, high = 0.0, 0, -8, 7
        own: dict[int, int] = {}
        for k in range(num_columns):
            if k % G == 0:
                group = w[k : k + G]
                ends = ends_of(group, rule)
                smallest, largest = min(0.0, *ends.values()), max(0.0, *ends.values())
                extreme = max(ends.values(), key=abs)
                exact = {"signed": extreme / -8, "absmax": abs(extreme) / 7.5, "asymmetric": (largest - smallest) / 15}
                scale = float(torch.tensor(exact[rule]).to(torch.bfloat16))
                scales[n, k // G] = scale
                zero = -8 - round(smallest / scale) if rule == "asymmetric" else 0
                if rule != "asymmetric":
                    smallest, largest = -abs(extreme), abs(extreme)
                code_of = lambda x, s=scale, z=zero: max(-8, min(7, round(x / s) + z))  # noqa: E731
                low, high = sorted((code_of(smallest), code_of(largest)))
                own = {k + i: code_of(value) for i, value in ends.items()}
            code = own.get(k, max(low, min(high, round(float(w[k]) / scale) + zero)))
            codes[n, k] = code
            error = w[k] - torch.tensor((code - zero) * scale).to(torch.bfloat16).double()
            inverse = torch.linalg.inv(damped[k:, k:])
            w[k:] -= error / inverse[0, 0] * inverse[0]
    return codes, scales


def textbook_in_order(weight: torch.Tensor, hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, ...]:
    """The same with act-order under the rule `signed`: columns by falling H_kk, scales from the original weights.

    The columns that are left make up for an error through the inverse of what is left of H, inverted anew.
    """
    num_rows, num_columns = weight.shape
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(num_columns)
    order = sorted(range(num_columns), key=lambda k: -float(hessian[k, k]))
    codes = torch.zeros(num_rows, num_columns, dtype=torch.int64)
    scales = torch.zeros(num_rows, num_columns // G, dtype=torch.float64)
    for n in range(num_rows):
        w = weight[n].double().clone()
        extremes: dict[int, int] = {}
        for i in range(num_columns // G):
            extreme = i * G + int(w[i * G : (i + 1) * G].abs().argmax())
            scales[n, i] = float(torch.tensor(float(w[extreme].to(torch.bfloat16)) / -8).to(torch.bfloat16))
            extremes[i] = extreme
        for done, k in enumerate(order):
            scale = float(scales[n, k // G])
            code = -8 if extremes[k // G] == k else max(-8, min(7, round(float(w[k]) / scale)))
            codes[n, k] = code
            error = w[k] - torch.tensor(code * scale).to(torch.bfloat16).double()
            left = order[done:]
            inverse = torch.linalg.inv(damped[left][:, left])
            w[left] -= error / inverse[0, 0] * inverse[0]
    return codes, scales


def scale_of_least_error(group: torch.Tensor, rule: str) -> float:
    """Every extreme and share one after the other, element by element; the extreme keeps its code."""
    ends = [int(group.argmax()), int(group.argmin())] if rule == "signed" else [int(group.abs().argmax())]
    found: list[tuple[float, float]] = []
    for extreme in ends:
        for share in SHARES:
            anchor = float(torch.tensor(share * float(group[extreme])).to(torch.bfloat16))
            scale = float(torch.tensor(anchor / -8 if rule == "signed" else abs(anchor) / 7.5).to(torch.bfloat16))
            lowest = max(-8, -round(abs(anchor / scale)))  # a larger weight would change the scale
            codes = [max(lowest, min(7, round(float(w) / scale))) for w in group]
            codes[extreme] = max(-8, min(7, round(anchor / scale)))
            found.append((sum((float(w) - code * scale) ** 2 for w, code in zip(group, codes, strict=True)), scale))
    return min(found)[1]
