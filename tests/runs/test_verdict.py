"""The verdict says what rounding costs and what is back, and decides nothing that the rows do not."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayqd.events import ArmResult
from rayqd.metrics.fidelity import ByRow
from rayqd.runs.verdict import make_verdict
from tests.example_events import arm_result


def arm(name: str, kl: list[float]) -> ArmResult:
    """An arm with that KL a token in each row, of 100 tokens."""
    ones = tuple([100] * len(kl))
    rows = ByRow(num_tokens=ones, kl=tuple(100 * each for each in kl), agrees=ones, nll=tuple(100.0 for _ in kl))
    return arm_result(name, sum(kl) / len(kl), num_tokens=100 * len(kl), by_row=rows)


def verdict(*arms: tuple[str, list[float]]) -> Any:
    found = make_verdict([arm("teacher", [0.0] * len(arms[0][1])), *(arm(*each) for each in arms)])
    assert found
    return found


def rows(mean: float, spread: float, seed: int, number: int = 40) -> list[float]:
    return (mean + spread * np.random.default_rng(seed).uniform(-1, 1, number)).tolist()


DAMAGE = rows(0.4, 0.1, 0)


def test_what_is_back_is_a_share_of_what_rounding_costs() -> None:
    found = verdict(
        ("round-to-nearest INT4", DAMAGE),
        ("GPTQ INT4", [0.5 * kl for kl in DAMAGE]),
        ("distilled INT4", [0.25 * kl for kl in DAMAGE]),
    )
    assert found.recovered.value == np.float64(0.75)
    assert ": 75 % of the damage is back (75 to 75 %)." in found.cost
    assert found.comparison == "Distilling leaves 50 % less than GPTQ (50 to 50 %)."
    assert found.evidence == "In brackets: 95 % intervals, by paired bootstrap over 40 held-out rows of 4,000 tokens."
    assert found.to_json()["change"]["against"] == "GPTQ"


def test_differences_that_other_rows_could_turn_round_are_not_decided() -> None:
    gptq = rows(0.2, 0.1, 1)
    noise = np.random.default_rng(2).uniform(0.5, 1.5, 40)
    found = verdict(("round-to-nearest INT4", DAMAGE), ("GPTQ INT4", gptq), ("distilled INT4", (noise * gptq).tolist()))
    assert found.comparison.startswith("Whether distilling leaves less than GPTQ is not decided (")


def test_damage_that_grew_is_said() -> None:
    found = verdict(("round-to-nearest INT4", DAMAGE), ("distilled INT4", [1.2 * kl for kl in DAMAGE]))
    assert "none of the damage is back, 20 % came on top" in found.cost


def test_few_rows_have_a_count_in_place_of_intervals() -> None:
    found = verdict(("round-to-nearest INT4", [0.4, 0.5]), ("distilled INT4", [0.4, 0.5]))
    assert found.evidence == "2 held-out rows of 200 tokens are too few for an interval: eval.num_rows asks for more."
    assert "%" not in found.comparison


def test_rounding_alone_is_told_alone() -> None:
    found = verdict(("round-to-nearest INT4", DAMAGE))
    assert found.cost.startswith("Rounding to nearest costs 0.4")
    assert (found.recovered, found.comparison) == (None, "")


def test_rounding_without_damage_has_nothing_to_bring_back() -> None:
    found = verdict(("round-to-nearest INT4", [0.0] * 12), ("GPTQ INT4", [0.0] * 12))
    assert "rounding costs nothing that they could bring back" in found.cost


def test_training_that_reached_no_other_code_is_said() -> None:
    half = [0.5 * kl for kl in DAMAGE]
    found = verdict(("round-to-nearest INT4", DAMAGE), ("GPTQ INT4", half), ("distilled INT4", half))
    assert found.comparison.startswith("Distilling computes what GPTQ does, to the last digit of every row: ")
    assert "learner.steps" in found.comparison
    found = verdict(("round-to-nearest INT4", DAMAGE), ("distilled INT4", DAMAGE))
    assert found.comparison.startswith("Distilling computes what rounding to nearest does, ")
    almost = [*half[:-1], half[-1] + 1e-7]
    found = verdict(("round-to-nearest INT4", DAMAGE), ("GPTQ INT4", half), ("distilled INT4", almost))
    assert "computes what" not in found.comparison
