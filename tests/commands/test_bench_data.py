"""`rayqd bench data` reads the same rows twice, each time in a process of its own."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.bench.data import write_rows
from rayqd.commands.bench_data import DEFAULT_ROWS, benchmark_data, data_config, rows_to_make
from rayqd.config.arguments import read_arguments
from rayqd.data.conversation import parse_row
from rayqd.errors import ConfigError


def test_rows_are_made_up_unless_the_settings_name_a_source() -> None:
    nothing, source = read_arguments([]), read_arguments(["--data.source", "a.jsonl"])
    assert data_config(nothing).model.name == "smollm2-135m"
    assert (rows_to_make(nothing, None), rows_to_make(nothing, "7")) == (DEFAULT_ROWS, 7)
    assert rows_to_make(source, None) is None
    with pytest.raises(ConfigError, match=r"--rows=7: the settings name a source"):
        rows_to_make(source, "7")
    with pytest.raises(ConfigError, match=r"--rows=0: must be a whole number from 1"):
        rows_to_make(nothing, "0")


def test_made_up_rows_are_rows_that_a_run_takes(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 20)
    rows = [parse_row(json.loads(line)) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len({str(row) for row in rows}) == 20


@pytest.mark.slow
def test_the_second_time_is_what_the_first_kept(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(data={"max_length": 500})
    output = io.StringIO()
    ballast = bytearray(b"x") * 2**30
    timings = benchmark_data(config, 4096, tmp_path / "out.json", Console(file=output, width=200))
    assert len(ballast) == 2**30
    first, second = timings
    assert (first.num_rows, first.num_examples) == (4096, 4096)
    assert (second.num_examples, second.num_tokens) == (first.num_examples, first.num_tokens)
    assert second.tokenize_seconds < first.tokenize_seconds
    # Each is a process of its own: what this one has resident, or held by a child of it, counts in neither.
    for timing in timings:
        assert 2**20 < timing.peak_bytes < 2**30
    written = json.loads((tmp_path / "out.json").read_text())
    assert [time["time"] for time in written["times"]] == ["first", "second"]
    assert "data: 4,096 rows" in output.getvalue()
