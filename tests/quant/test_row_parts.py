"""Rows in parts: every row once, in order, one torch thread each, and the caller's threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from rayqd.quant.row_parts import map_row_parts


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_rows", [1, 64, 65, 200, 1000])
def test_every_row_is_in_one_part(num_rows: int, three_threads: None) -> None:
    parts = map_row_parts(lambda part: list(range(num_rows))[part], num_rows)
    assert [row for part in parts for row in part] == list(range(num_rows))
    assert len(parts) <= 3


def test_a_part_runs_on_one_thread_of_torch_without_gradients(three_threads: None) -> None:
    weight = torch.ones(300, 2, requires_grad=True)
    for _ in range(2):  # threads are used again
        states = map_row_parts(
            lambda part: (torch.get_num_threads(), threading.get_ident(), weight[part].sum().requires_grad), 300
        )
        assert {state[0] for state in states} == {1}
        assert threading.get_ident() not in {state[1] for state in states}
        assert not any(state[2] for state in states)
        assert torch.get_num_threads() == 3


def test_what_a_part_raises_reaches_the_caller(three_threads: None) -> None:
    def fail(part: slice) -> None:
        if part.start:
            raise ValueError(f"rows from {part.start}")

    with pytest.raises(ValueError, match="rows from 100"):
        map_row_parts(fail, 300)


def test_parts_of_what_was_made_in_inference_mode_may_be_written_there(three_threads: None) -> None:
    with torch.inference_mode():
        values = torch.zeros(300, 4)

        def fill(part: slice) -> None:
            values[part] = torch.arange(part.start, part.stop, dtype=torch.float32)[:, None]

        map_row_parts(fill, len(values))
    assert torch.equal(values[:, 0], torch.arange(300.0))
