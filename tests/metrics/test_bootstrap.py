"""Intervals hold the truth as often as they say, on rows whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from rayqd.metrics.bootstrap import LEAST_ROWS, change, estimate, ratio, recovered

NUM_ROWS, NUM_WORLDS = 60, 200


@pytest.mark.slow
def test_intervals_of_mean_and_recovered_share_hold_the_truth_in_95_of_100_worlds() -> None:
    """Rows of unequal lengths; a row's KL a token is gamma distributed, and what is left of it beta distributed."""
    generator = np.random.default_rng(7)
    held = np.zeros(2)
    for _ in range(NUM_WORLDS):
        tokens = generator.integers(40, 240, NUM_ROWS)
        damage = generator.gamma(8.0, 0.05, NUM_ROWS)  # mean 0.4, independent of the length
        left = damage * generator.beta(6.0, 14.0, NUM_ROWS)  # mean 0.3 of it
        kl = estimate(ratio, damage * tokens, tokens).interval
        back = estimate(recovered, damage * tokens, left * tokens).interval
        assert kl
        assert back
        held += [not kl.excludes(0.4), not back.excludes(0.7)]
    # Three standard errors of a share of 95 % in 200 worlds are 4.6 %.
    assert np.all(np.abs(held / NUM_WORLDS - 0.95) < 0.046), held / NUM_WORLDS


def test_a_paired_interval_is_narrower_than_the_distance_between_rows() -> None:
    """Every row has 10 % less, whatever it had: the rows differ, and the change does not."""
    before = [float(i) for i in range(1, 41)]
    found = estimate(change, before, [0.9 * value for value in before])
    assert found.value == pytest.approx(-0.1)
    assert found.interval
    assert found.interval.low == pytest.approx(-0.1)
    assert found.interval.high == pytest.approx(-0.1)


def test_few_rows_have_no_interval_and_the_same_rows_the_same_one() -> None:
    rows = [float(i % 7 + 1) for i in range(LEAST_ROWS)]
    ones = [1.0] * LEAST_ROWS
    assert estimate(ratio, rows[:-1], ones[:-1]).interval is None
    assert estimate(ratio, rows, ones).interval == estimate(ratio, tuple(rows), ones).interval is not None


def test_interval_of_a_mean_is_near_the_normal_one_of_many_rows() -> None:
    """Of n independent rows: mean ± 1.96 s / √n."""
    values = np.random.default_rng(1).normal(5.0, 1.0, 400)
    found = estimate(ratio, values, np.ones(400)).interval
    half = 1.96 * values.std(ddof=1) / 20
    assert found
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
