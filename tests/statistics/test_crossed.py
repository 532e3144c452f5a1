"""Estimates over items and seeds: against scipy where there is one seed, else against sums written out."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from rayqd.statistics import holm
from rayqd.statistics.bootstrap import crossed_interval
from rayqd.statistics.crossed import components, difference_of_ratios, ratio_of_sums
from rayqd.statistics.decision import decide

ONES = np.ones


def test_one_seed_is_the_paired_t_test_over_the_items() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(1.0, 1.0, (1, 25)), random.normal(1.3, 1.0, (1, 25))
    found = ratio_of_sums(a - b, ONES((1, 25)))
    reference = stats.ttest_rel(a[0], b[0])
    assert found.value == pytest.approx((a - b).mean())
    assert found.p_different() == pytest.approx(reference.pvalue)
    interval = reference.confidence_interval()
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_equivalence_is_two_one_sided_t_tests() -> None:
    d = np.random.default_rng(1).normal(0.05, 0.3, (1, 40))
    above = stats.ttest_1samp(d[0], -0.2, alternative="greater").pvalue
    below = stats.ttest_1samp(d[0], 0.2, alternative="less").pvalue
    assert ratio_of_sums(d, ONES((1, 40))).p_equivalent(0.2) == pytest.approx(max(above, below))


def test_components_are_those_of_the_analysis_of_variance_written_out() -> None:
    y = np.random.default_rng(2).normal(size=(3, 7)) + np.arange(3)[:, None] + np.arange(7)
    mean = sum(y[s, r] for s in range(3) for r in range(7)) / 21
    of_item = [sum(y[s, r] for s in range(3)) / 3 for r in range(7)]
    of_seed = [sum(y[s, r] for r in range(7)) / 7 for s in range(3)]
    ms_item = 3 * sum((m - mean) ** 2 for m in of_item) / 6
    ms_seed = 7 * sum((m - mean) ** 2 for m in of_seed) / 2
    rest = sum((y[s, r] - of_item[r] - of_seed[s] + mean) ** 2 for s in range(3) for r in range(7)) / 12
    found = components(y)
    assert found.rest == pytest.approx(rest)
    assert found.item == pytest.approx((ms_item - rest) / 3)
    assert found.seed == pytest.approx((ms_seed - rest) / 7)
    assert found.of_mean(7, 3) == pytest.approx((ms_item + ms_seed - rest) / 21)
    of_items, of_seeds = stats.t.ppf(0.975, 6) ** 2 * ms_item / 21, stats.t.ppf(0.975, 2) ** 2 * (ms_seed - rest) / 21
    half = ratio_of_sums(y, ONES((3, 7))).half_width(0.025)
    assert half == pytest.approx((of_items + of_seeds) ** 0.5)


def test_a_difference_of_ratios_is_linear_in_the_weight_of_each_cell() -> None:
    """Each cell's part in it is the derivative by the cell's weight, taken here by finite differences."""
    random = np.random.default_rng(9)
    d, e = random.integers(5, 60, (3, 12)).astype(float), random.integers(5, 60, (3, 12)).astype(float)
    n, m = random.gamma(2.0, 0.1, (3, 12)) * d, random.gamma(2.0, 0.2, (3, 12)) * e
    found = difference_of_ratios((n, d), (m, e))

    def weighted(w: np.ndarray) -> float:
        return float((w * n).sum() / (w * d).sum() - (w * m).sum() / (w * e).sum())

    assert found.value == pytest.approx(weighted(ONES((3, 12))))
    parts, step = np.zeros((3, 12)), 1e-6
    for s, r in itertools.product(range(3), range(12)):
        up, down = ONES((3, 12)), ONES((3, 12))
        up[s, r] += step
        down[s, r] -= step
        parts[s, r] = 36 * (weighted(up) - weighted(down)) / (2 * step)
    expected = components(parts)
    assert found.components.item == pytest.approx(expected.item, rel=1e-6)
    assert found.components.seed == pytest.approx(expected.seed, rel=1e-6, abs=1e-12)
    assert found.components.rest == pytest.approx(expected.rest, rel=1e-6)

    same = difference_of_ratios((n, d), (m, d))
    plain = ratio_of_sums(n - m, d)
    assert same.value == pytest.approx(plain.value)
    assert same.interval() == pytest.approx(plain.interval())


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_cell_that_is_not_finite_leaves_nothing_to_say(num_seeds: int, bad: float) -> None:
    cells = np.random.default_rng(8).normal(0.1, 0.01, (num_seeds, 30))
    sure = ratio_of_sums(cells, ONES(cells.shape))
    cells[0, 7] = bad
    found = ratio_of_sums(cells, ONES(cells.shape))
    assert (found.stderr, found.interval(), found.p_different(), found.p_equivalent(0.5)) == (None,) * 4
    unknown, known = decide([found, sure], 1e-4)
    assert (unknown.outcome, unknown.needed) == ("not decided", None)
    assert known == decide([sure], 1e-4)[0]  # which nobody's correction changes


def test_a_ratio_of_sums_has_the_error_of_the_delta_method() -> None:
    random = np.random.default_rng(3)
    tokens = random.integers(5, 200, (1, 400)).astype(float)
    kl = tokens * random.gamma(2.0, 0.1, (1, 400))
    found = ratio_of_sums(kl, tokens)
    draws = random.integers(0, 400, (20_000, 400))
    bootstrapped = (kl[0][draws].sum(1) / tokens[0][draws].sum(1)).std()
    assert found.value == pytest.approx(kl.sum() / tokens.sum())
    assert found.stderr == pytest.approx(bootstrapped, rel=0.03)


def test_the_bootstrap_of_many_items_and_seeds_agrees_with_the_interval() -> None:
    random = np.random.default_rng(4)
    y = 1.0 + random.normal(0, 0.3, (30, 1)) + random.normal(0, 1.0, (1, 300)) + random.normal(0, 0.1, (30, 300))
    found = ratio_of_sums(y, ONES(y.shape)).interval()
    assert found is not None
    assert crossed_interval(y, ONES(y.shape)) == pytest.approx(found, abs=0.1 * (found[1] - found[0]))


def test_p_values_are_those_at_which_the_interval_ends() -> None:
    random = np.random.default_rng(5)
    y = 0.3 + random.normal(0, 0.2, (3, 1)) + random.normal(0, 1.0, (1, 60)) + random.normal(0, 0.3, (3, 60))
    found = ratio_of_sums(y, ONES(y.shape))
    p, q = found.p_different(), found.p_equivalent(1.0)
    assert p is not None
    assert q is not None
    low, high = found.interval(1 - p) or (0.0, 0.0)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)
    low, high = found.interval(1 - 2 * q) or (0.0, 0.0)
    assert max(-low, high) == pytest.approx(1.0)


def test_seeds_that_differ_among_themselves_widen_the_interval() -> None:
    random = np.random.default_rng(5)
    items = random.normal(0, 1.0, (1, 200))
    same = np.repeat(items, 3, axis=0) + random.normal(0, 1e-3, (3, 200))
    other = same + np.array([[-1.0], [0.0], [1.0]])
    ones = ONES((3, 200))
    # t of 2 degrees is 4.30, the error of three seeds of spread 1 is 0.577; the items add little to that
    assert ratio_of_sums(other, ones).half_width(0.025) == pytest.approx(4.30 * 0.577, rel=0.01)
    assert ratio_of_sums(same, ones).half_width(0.025) == pytest.approx(1.97 * items.std(ddof=1) / 200**0.5, rel=0.01)


def test_too_few_items_have_no_interval_and_decide_nothing() -> None:
    found = ratio_of_sums(np.full((2, 9), -1.0), ONES((2, 9)))
    assert found.interval() is None
    decision = decide([found], 0.1)[0]
    assert (decision.outcome, decision.p_different) == ("not decided", None)


def closed_test(p_values: list[float], level: float) -> list[bool]:
    """Holm's procedure by the closure principle: a hypothesis falls if Bonferroni rejects every set that it is in."""
    m = len(p_values)
    sets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
    return [all(min(p_values[j] for j in s) <= level / len(s) for s in sets if i in s) for i in range(m)]


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.2, 0.2, 0.001, 0.9, 0.012, 0.049], [0.6, 0.6, 0.006, 0.9, 0.06, 0.196]),
        ([0.5, 0.6], [1.0, 1.0]),
    ],
)
def test_holm_is_that_of_statsmodels(p_values: list[float], adjusted: list[float]) -> None:
    """`multipletests(p_values, method="holm")[1]` of statsmodels 0.15.0, whose import takes 2 s of a core."""
    assert holm.adjust(p_values) == pytest.approx(adjusted)


def test_holm_is_the_closure_of_bonferroni() -> None:
    random = np.random.default_rng(6)
    for _ in range(200):
        p_values = [float(p) for p in random.beta(0.3, 2.0, 5)]
        adjusted = holm.adjust(p_values)
        for level in (0.01, 0.05, 0.3):
            assert [p <= level for p in adjusted] == closed_test(p_values, level)
    assert holm.adjust([]) == []


def test_what_is_needed_decides_and_one_less_does_not() -> None:
    random = np.random.default_rng(7)
    d = 0.02 + random.normal(0, 0.03, (2, 1)) + random.normal(0, 0.3, (1, 50)) + random.normal(0, 0.1, (2, 50))
    decision = decide([ratio_of_sums(d, ONES((2, 50)))], margin=0.01)[0]
    assert decision.outcome == "not decided"
    assert decision.needed is not None
    found, seeds = decision.difference, decision.needed.seeds

    def is_decided(num_items: int, num_seeds: int) -> bool:
        parts = found.components
        of_items = stats.t.ppf(0.975, num_items - 1) ** 2 * (parts.item + parts.rest / num_seeds) / num_items
        of_seeds = stats.t.ppf(0.975, num_seeds - 1) ** 2 * parts.seed / num_seeds
        return bool(abs(found.value) > (of_items + of_seeds) ** 0.5)

    assert decision.needed.items is None or is_decided(decision.needed.items, 2)
    if seeds is not None:
        assert is_decided(50, seeds)
        assert not is_decided(50, seeds - 1)


@pytest.mark.parametrize(
    ("mean", "spread", "outcome"),
    [(-0.5, 0.1, "better"), (0.5, 0.1, "worse"), (0.0, 0.1, "equivalent"), (0.05, 3.0, "not decided")],
)
def test_a_difference_has_one_of_four_outcomes(mean: float, spread: float, outcome: str) -> None:
    d = np.random.default_rng(8).normal(0, spread, (3, 100))
    d += mean - d.mean()
    assert decide([ratio_of_sums(d, ONES(d.shape))], margin=0.1)[0].outcome == outcome
