"""Studies drawn from a known truth: how often the intervals hold it, and how often the tests err."""

import numpy as np
import pytest

from rayqd.statistics.bootstrap import crossed_interval
from rayqd.statistics.crossed import Cells, Estimate, difference_of_ratios, ratio_of_sums
from rayqd.statistics.decision import decide

pytestmark = pytest.mark.slow

STUDIES = 3000  # the standard error of a share of 95 % is then 0.4 %
TRUTH = 0.05  # nats a token, between two arms


def study(
    random: np.random.Generator, num_seeds: int, num_items: int, spreads: tuple[float, float, float], truth: float
) -> Estimate:
    """A difference of two arms: skewed over the items, of different lengths; spreads of item, seed and rest."""
    of_item, of_seed, of_rest = spreads
    tokens = np.broadcast_to(random.integers(50, 250, num_items).astype(float), (num_seeds, num_items))
    skewed = random.gamma(4.0, 0.5, num_items) - 2.0  # mean 0, standard deviation 1, skewness 1
    a_token = (
        truth
        + of_item * skewed
        + of_seed * random.normal(size=(num_seeds, 1))
        + of_rest * random.normal(size=(num_seeds, num_items))
    )
    return ratio_of_sums(a_token * tokens, tokens)


@pytest.mark.parametrize(
    ("num_seeds", "num_items", "spreads"),
    [
        (2, 40, (0.1, 0.0, 0.05)),  # seeds do not matter
        (2, 40, (0.1, 0.01, 0.05)),  # they do, less than the items
        (2, 200, (0.1, 0.05, 0.05)),  # five times as much
        (3, 40, (0.1, 0.05, 0.05)),  # more than the items
        (3, 200, (0.1, 0.02, 0.1)),
        (5, 200, (0.02, 0.05, 0.02)),  # almost all of it is the seeds'
        (1, 60, (0.1, 0.0, 0.05)),
    ],
)
def test_intervals_hold_the_truth_in_95_percent_of_the_studies(
    num_seeds: int, num_items: int, spreads: tuple[float, float, float]
) -> None:
    random = np.random.default_rng(num_seeds * 1000 + num_items)
    held = 0
    for _ in range(STUDIES):
        interval = study(random, num_seeds, num_items, spreads, TRUTH).interval()
        assert interval is not None
        held += interval[0] <= TRUTH <= interval[1]
    assert 0.93 <= held / STUDIES <= 0.97, held / STUDIES


def own_texts(
    random: np.random.Generator, num_seeds: int, num_items: int, spread: float
) -> tuple[tuple[Cells, Cells], tuple[Cells, Cells]]:
    """KL and tokens of two arms along text of their own: harder prompts have shorter ones, the second arm longer."""
    hardness, shape = random.gamma(4.0, 0.25, num_items), (num_seeds, num_items)

    def arm(kl: float, length: float) -> tuple[Cells, Cells]:
        tokens = np.minimum(160, 1 + random.geometric(np.broadcast_to(hardness**0.5 / length, shape))).astype(float)
        of_seed = 1 + spread * random.normal(size=(num_seeds, 1))
        return kl * of_seed * hardness * tokens * random.gamma(8.0, 1 / 8, shape), tokens

    return arm(0.1, 80), arm(0.11, 104)


@pytest.mark.parametrize(("num_seeds", "num_items"), [(3, 160), (2, 160), (1, 160)])
def test_intervals_of_a_difference_along_other_texts_hold_the_truth(num_seeds: int, num_items: int) -> None:
    (kl, tokens), (other_kl, other_tokens) = own_texts(np.random.default_rng(0), 1, 1_000_000, 0.0)
    truth = float(kl.sum() / tokens.sum() - other_kl.sum() / other_tokens.sum())
    random, spread, held = np.random.default_rng(num_seeds), 0.03 if num_seeds > 1 else 0.0, 0
    for _ in range(STUDIES):
        interval = difference_of_ratios(*own_texts(random, num_seeds, num_items, spread)).interval()
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert 0.93 <= held / STUDIES <= 0.97, held / STUDIES


def test_a_bootstrap_over_three_seeds_holds_it_less_often() -> None:
    random = np.random.default_rng(0)
    held, num = 0, 500
    for _ in range(num):
        seeds, items, rest = random.normal(size=(3, 1)), random.normal(size=(1, 40)), random.normal(size=(3, 40))
        y = TRUTH + 0.05 * seeds + 0.1 * items + 0.05 * rest
        low, high = crossed_interval(y, np.ones(y.shape), draws=499)
        held += low <= TRUTH <= high
    assert held / num < 0.93


def test_tests_err_as_seldom_as_they_say() -> None:
    """Of three arms that are as good, none is called different; of three on the margin, none equivalent."""
    random = np.random.default_rng(1)
    margin, spreads, num = 0.05, (0.1, 0.01, 0.05), 800
    wrongly_different = wrongly_equivalent = one_arm = 0
    for _ in range(num):
        same = decide([study(random, 3, 200, spreads, 0.0) for _ in range(3)], margin=0.0)
        wrongly_different += any(each.outcome in ("better", "worse") for each in same)
        one_arm += decide([same[0].difference], margin=0.0)[0].outcome != "not decided"
        at_margin = decide([study(random, 3, 200, spreads, margin) for _ in range(3)], margin)
        wrongly_equivalent += any(each.outcome == "equivalent" for each in at_margin)
    # 5 %, and 1 % for the skewness and the luck of 800 studies (whose standard error is 0.8 %)
    assert wrongly_different / num <= 0.065
    assert wrongly_equivalent / num <= 0.065
    assert 0.03 <= one_arm / num <= 0.065


def test_more_seeds_as_told_decide_it() -> None:
    """A study that is told how many seeds would decide it is decided by so many, in most of its repetitions."""
    random = np.random.default_rng(2)
    spreads, told, decided = (0.05, 0.05, 0.05), 0, 0
    while told < 100:
        first = decide([study(random, 3, 100, spreads, TRUTH)], 0.01)[0]
        if not first.needed or not first.needed.seeds or first.needed.seeds > 50 or first.difference.value < TRUTH / 2:
            continue
        told += 1
        again = decide([study(random, max(first.needed.seeds, 12), 100, spreads, TRUTH)], 0.01)[0]
        decided += again.outcome == "worse"
    assert decided > 50
