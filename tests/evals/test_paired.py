"""Paired standard errors, against plain loops in float64 and scipy's paired t-test."""

import math
import random

import pytest
from scipy.stats import ttest_rel

from rayqd.evals.paired import Difference, mean_difference, resampled_difference, weighted_difference


def answers(seed: int, n: int) -> list[tuple[float, float]]:
    """(model, teacher) right or wrong, mostly alike, as a quantized model and its teacher are."""
    generator = random.Random(seed)
    teacher = [float(generator.random() < 0.6) for _ in range(n)]
    return [(1 - right if generator.random() < 0.1 else right, right) for right in teacher]


@pytest.mark.parametrize("n", [2, 3, 50, 1319])
def test_the_standard_error_is_that_of_the_mean_of_the_differences(n: int) -> None:
    pairs = answers(n, n) if n > 3 else [(1.0, 0.25), (0.0, 0.5), (1.0, 1.0)][:n]
    total = 0.0
    for model, teacher in pairs:
        total += model - teacher
    squares = 0.0
    for model, teacher in pairs:
        squares += (model - teacher - total / n) ** 2
    found = mean_difference(*zip(*pairs, strict=True))
    assert found.value == pytest.approx(total / n, rel=1e-12)
    assert found.stderr == pytest.approx(math.sqrt(squares / (n - 1)) / math.sqrt(n), rel=1e-12)
    # t = d / SE
    assert found.stderr
    assert found.value / found.stderr == pytest.approx(ttest_rel(*zip(*pairs, strict=True)).statistic, rel=1e-9)


def test_it_is_tighter_than_that_of_two_independent_scores_where_both_find_the_same_documents_hard() -> None:
    pairs = answers(0, 1000)
    paired = mean_difference(*zip(*pairs, strict=True)).stderr
    alone = [math.sqrt(p * (1 - p) / 999) for p in (sum(each) / 1000 for each in zip(*pairs, strict=True))]
    assert paired is not None
    assert paired < 0.5 * math.hypot(*alone)  # 0.010 against 0.022


@pytest.mark.parametrize(
    ("value", "stderr", "higher_is_better", "verdict"),
    [
        (-0.0195, 0.01, True, "within noise"),
        (-0.0197, 0.01, True, "worse"),  # 1.97 standard errors
        (-0.0197, 0.01, False, "better"),
        (0.0197, 0.01, True, "better"),
        (0.0, 0.0, True, "same"),
        (-0.5, 0.0, True, "worse"),  # by the same amount on every document
        (-0.5, None, True, None),
    ],
)
def test_beyond_noise_is_more_than_1_96_standard_errors(
    value: float, stderr: float | None, higher_is_better: bool, verdict: str | None
) -> None:
    assert Difference(value=value, stderr=stderr).verdict(higher_is_better=higher_is_better) == verdict


def test_one_document_says_nothing_of_noise() -> None:
    assert mean_difference([1.0], [0.0]) == Difference(value=1.0, stderr=None)


def test_resampling_agrees_with_the_formula_where_there_is_one() -> None:
    model, teacher = zip(*answers(1, 400), strict=True)
    exact = mean_difference(model, teacher)
    drawn = resampled_difference(model, teacher, lambda values: sum(values) / len(values))
    assert drawn.value == pytest.approx(exact.value, abs=1e-12)
    assert drawn.stderr == pytest.approx(exact.stderr, rel=0.1)  # 1000 draws: 2.2 % of noise


def test_resampling_draws_the_same_documents_for_both() -> None:
    values = [random.Random(0).gauss(0, 9) for _ in range(50)]
    moved = [value + 1 for value in values]
    found = resampled_difference(moved, values, lambda drawn: sum(drawn) / len(drawn))
    assert found.value == pytest.approx(1)
    assert found.stderr == pytest.approx(0, abs=1e-9)


def test_a_groups_variance_is_the_weighted_sum_of_its_tasks() -> None:
    parts = [Difference(value=-0.1, stderr=0.03), Difference(value=0.2, stderr=0.04)]
    found = weighted_difference(parts, [0.75, 0.25])
    assert found.value == pytest.approx(-0.075 + 0.05)
    assert found.stderr == pytest.approx(math.sqrt(0.75**2 * 0.03**2 + 0.25**2 * 0.04**2))
    assert weighted_difference([parts[0], Difference(value=0.0, stderr=None)], [0.5, 0.5]).stderr is None
