"""The errors by layer on a run's page: one scale, a line a kind, numbers that are the errors'."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from rayqd.events import Arm, ArmKind, ArmResult
from rayqd.report.layers import group_by_kind, layers_section
from tests.comparison.made_runs import measure

LAYERS = 3


def row(kind: ArmKind, factor: float) -> ArmResult:
    errors = {
        f"model.layers.{i}.{name}": factor * (i + 1) * size
        for i in range(LAYERS)
        for name, size in (("self_attn.q_proj", 0.1), ("mlp.down_proj", 0.2))
    }
    return ArmResult(arm=Arm(kind=kind, format="int4"), fidelity=measure(factor, None), layer_errors=errors)


def test_each_arm_has_a_chart_of_the_same_scale_with_a_line_a_kind() -> None:
    drawn = str(layers_section([row(ArmKind.RTN, 1.0), row(ArmKind.DISTILLED, 0.5)]))
    figures = re.findall(r"<figure.*?</figure>", drawn)
    assert [re.findall("<strong>(.*?)</strong>", figure) for figure in figures] == [
        ["Error by layer, round-to-nearest INT4"],
        ["Error by layer, distilled INT4"],
    ]
    curves = []
    for figure in figures:
        svg = ElementTree.fromstring(re.findall(r"<svg.*</svg>", figure)[0])
        curves.append({path.get("class"): path.get("d") for path in svg.iter("path")})
        assert [text.text for text in svg.iter("text")][:4] == ["0.0", "0.2", "0.4", "0.6"]
    # 0.2, 0.4 and 0.6 of 0.6 on a plot from 176 up to 10, and half of them
    assert curves[0]["line k1"] == "M44 120.7L217 65.3L390 10"
    assert curves[1]["line k1"] == "M44 148.3L217 120.7L390 93"
    # the root of (0.1² + 0.2² + 0.3² + 0.2² + 0.4² + 0.6²) / 6 is 0.3416
    assert "round-to-nearest INT4 0.342; distilled INT4 0.171" in drawn


def test_without_errors_there_is_no_section() -> None:
    assert layers_section([ArmResult(arm=Arm(kind=ArmKind.RTN, format="int4"), fidelity=measure(1.0, None))]) == ""


def test_kinds_beyond_the_colours_and_layers_of_one_number_come_together() -> None:
    assert group_by_kind({"a.0.experts.0.up": 0.3, "a.0.experts.1.up": 0.4, "head": 9.0}) == {
        "up": [(0, pytest.approx((0.125) ** 0.5))]
    }
    many = group_by_kind({f"h.{i}.kind{kind}": float(kind) for kind in range(10) for i in range(2)})
    assert list(many) == [*(f"kind{kind}" for kind in range(7)), "others"]
    assert many["others"] == [(i, pytest.approx(((49 + 64 + 81) / 3) ** 0.5)) for i in range(2)]
