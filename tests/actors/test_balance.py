from hypothesis import given
from hypothesis import strategies as st

from rayqd.actors.balance import split_evenly


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 6))
def test_shares_hold_every_index_once_and_differ_by_no_more_than_the_longest(sizes: list[int], num_shares: int) -> None:
    shares = split_evenly(sizes, num_shares)
    assert len(shares) == num_shares
    assert sorted(i for share in shares for i in share) == list(range(len(sizes)))
    loads = [sum(sizes[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)
