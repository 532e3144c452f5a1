"""No terminal is so narrow that a number is cut: what does not fit goes as a whole column, and is named."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.bench.report import BenchReport, BenchRow
from rayqd.bench.timing import Timing
from rayqd.console.benchmark_table import print_benchmarks
from rayqd.console.result_table import how_to_run
from rayqd.console.tables import Column, print_table

WIDTHS = range(40, 121)
ROWS = [
    ["teacher", "0.0000", "100.0%", "18.457", "16", "269.1 MB"],
    ["round-to-nearest INT4", "0.3666", "68.7%", "22.035", "4.25", "113.2 MB"],
    ["distilled NVFP4, of all weights", "0.1309", "81.2%", "1234.239", "4.25", "1,113.2 MB"],
]
COLUMNS = [
    Column(heading="", is_label=True),
    Column(heading="KL to\nteacher"),
    Column(heading="same\ntop-1", rank=2),
    Column(heading="perplexity", rank=1),
    Column(heading="bits/\nweight", rank=3),
    Column(heading="size", rank=4),
]


def screen(width: int, show: Any) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width))
    return stream.getvalue()


def numbers(text: str) -> list[str]:
    return re.findall(r"[-+]?\d[\d,.]*", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_column_is_shown_whole_or_not_at_all(width: int) -> None:
    text = screen(width, lambda console: print_table(console, COLUMNS, ROWS, title="t"))
    table, _, note = text.partition("not shown in")
    left_out = [name.strip() for name in note.partition(": ")[2].split(",") if name.strip()]
    headings = [" ".join(column.heading.split()) for column in COLUMNS]
    assert "…" not in text
    assert max(map(len, table.splitlines())) <= width
    for i, heading in enumerate(headings[1:], 1):
        shown = [row[i] in table for row in ROWS]
        assert shown == [heading not in left_out] * len(ROWS), heading
    kept = [cell for row in ROWS for i, cell in enumerate(row) if headings[i] not in left_out]
    of_cells = {number for cell in kept for number in numbers(cell)}
    assert set(numbers(table.replace("top-1", ""))) <= of_cells, "a number that no cell has was cut from one"
    for row in ROWS:
        assert all(word.strip(",") in table for word in row[0].split("-")[0].split())


def test_the_lesser_columns_go_first() -> None:
    text = screen(40, lambda console: print_table(console, COLUMNS, ROWS))
    assert text.splitlines()[-1].startswith("not shown in 40 columns: ")
    assert "size" in text.splitlines()[-1]
    assert "0.1309" in text
    assert "not shown" not in screen(120, lambda console: print_table(console, COLUMNS, ROWS))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_benchmark_of_speed_shows_its_numbers_whole(width: int) -> None:
    cells = {"arm": "adapters inside the rounding", "ms a step": 12345.678, "tokens/s": 123456, "peak GiB": 123.4}
    timing = Timing(seconds=1.0, fastest_seconds=1.0, slowest_seconds=1.0, peak_bytes=None)
    report = BenchReport(
        kind="step", model="m", device="d", torch="2", dtype="bfloat16", sequences=8, length=1024, repeats=5,
        rows=[BenchRow(cells=cells, timing=timing)],
    )  # fmt: skip
    text = screen(width, report.show)
    assert "12,345.7" in text
    assert "123,456" in text or "tokens/s" in text.rpartition("not shown")[2]
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_scores_of_benchmarks_are_shown_whole(width: int) -> None:
    teacher = {"value": 0.41231, "stderr": 0.0101}
    student = {"value": 0.39, "stderr": 0.01, "difference": -0.02, "difference_stderr": 0.0065, "verdict": "worse"}
    row: Any = {
        "task": "arc_easy", "metric": "acc", "filter": "none", "higher_is_better": True, "num_documents": 2376,
        "arms": {"teacher": teacher, "distilled": student},
    }  # fmt: skip
    text = screen(width, lambda console: print_benchmarks(console, [row]))
    assert "0.4123 ± 0.0101" in text
    assert "-0.0200 ± 0.0065" in text or "against teacher" in text.rpartition("not shown")[2]
    assert "…" not in text


@pytest.mark.parametrize(
    ("flags", "has_gpu", "remark"),
    [
        ("fpu avx2 avx512f", False, ""),
        ("fpu avx2", True, ""),
        ("fpu avx2", False, "on a GPU, or a CPU with AVX-512"),
        ("fp asimd", False, ""),
    ],
)
def test_what_serving_an_export_needs_is_told_where_this_machine_lacks_it(
    flags: str, has_gpu: bool, remark: str, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    if has_gpu:
        (tmp_path / "driver" / "nvidia").mkdir(parents=True)
    assert how_to_run("int4", "runs/mine/export", tmp_path) == ("serve it", "vllm serve runs/mine/export", remark)
