"""The order of sources, beside a list of all due times that is sorted."""

from fractions import Fraction

import pytest

from rayqd.data.shares import count_drawn, list_drawn

WEIGHTS = [[1], [2.5], [1, 1], [3, 1], [0.7, 0.2, 0.1], [1 / 3, 2, 5, 0.01], [1e-6, 1, 1e3], [7, 7, 7, 1, 1, 1, 2, 0.3]]


def by_sorting(weights: list[float], num_sequences: int) -> list[tuple[int, int]]:
    """The first sequences by definition: the k-th of a source is due at (k + 1/2) / share."""
    total = sum(Fraction(str(weight)) for weight in weights)
    due = [
        (Fraction(2 * k + 1, 2) * total / Fraction(str(weight)), source, k)
        for source, weight in enumerate(weights)
        for k in range(num_sequences)
    ]
    return [(source, k) for _, source, k in sorted(due)[:num_sequences]]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_sequences_come_as_they_are_due_wherever_one_begins(weights: list[float]) -> None:
    expected = by_sorting(weights, 120)
    assert list_drawn(weights, 0, 120) == expected
    for start in (0, 1, 2, 7, 8, 63, 119):
        assert list_drawn(weights, start, min(start + 9, 120)) == expected[start : start + 9]
        counts = [sum(source == i for source, _ in expected[:start]) for i in range(len(weights))]
        assert count_drawn(weights, start) == counts


def test_three_quarters_and_a_quarter_are_the_order_done_by_hand() -> None:
    # The first source is due at 2/3, 2, 10/3, 14/3, ..., the second at 2, 6, ...; of two at once the first one comes.
    assert [source for source, _ in list_drawn([3, 1], 0, 8)] == [0, 0, 1, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_a_share_is_kept_to_a_sequence_after_any_number_of_them(weights: list[float]) -> None:
    total = sum(Fraction(str(weight)) for weight in weights)
    for num_sequences in [*range(60), 1000, 10**9 + 7]:
        counts = count_drawn(weights, num_sequences)
        assert sum(counts) == num_sequences
        for count, weight in zip(counts, weights, strict=True):
            exact = num_sequences * Fraction(str(weight)) / total
            assert abs(count - exact) <= 1 if len(weights) < 8 else abs(count - exact) < 2


def test_only_the_proportions_of_weights_count() -> None:
    assert list_drawn([0.3, 0.1], 5, 90) == list_drawn([300, 100], 5, 90)


def test_a_source_alone_gives_every_sequence() -> None:
    assert list_drawn([0.37], 10**12, 10**12 + 3) == [(0, 10**12), (0, 10**12 + 1), (0, 10**12 + 2)]
