"""Benchmarks in the terminal: each model's score, and how far it is from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from rayqd.console.say import say
from rayqd.console.tables import Cells, Column, print_table
from rayqd.runs.benchmarks import BenchmarkRow, BenchmarkScore

_COLUMNS = (
    Column(heading="", is_label=True),
    Column(heading="score"),
    Column(heading="against teacher", rank=1),
    Column(heading="documents, verdict", is_words=True, rank=2),
)


def print_benchmarks(console: Console, rows: Sequence[BenchmarkRow]) -> None:
    """Print `rows` as rayqd.evals.benchmarks makes them; of a group's tasks only the group is shown."""
    shown = drop_group_members(rows)
    rows_of_cells: list[Cells] = []
    for row in shown:
        rows_of_cells.append([Text(heading_of(row), style="bold"), "", "", f"{row['num_documents']:,} docs"])
        for name, arm in row["arms"].items():
            cells = [f"  {name}", score_text(arm), difference_text(arm), arm.get("verdict") or ""]
            rows_of_cells.append(cells)
        rows_of_cells.append([])
    console.print()
    print_table(console, _COLUMNS, rows_of_cells, title="benchmarks: what 4 bits cost")
    for line in (*NOTES, *chance(shown), *cut_answers(shown)):
        say(console, line)


NOTES = (
    "± one standard error; against teacher: paired, over the same documents (Miller 2024, arXiv:2411.00640, 4.2)",
    "within noise: the difference is less than 1.96 of its standard errors",
)


def drop_group_members(rows: Sequence[BenchmarkRow]) -> list[BenchmarkRow]:
    """Return `rows` without the tasks that a group's row stands for."""
    return [row for row in rows if row.get("part_of") is None]


def chance(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Return a remark, where the comparisons are many, that some are beyond noise by chance; else nothing."""
    compared = sum("verdict" in arm for row in rows for arm in row["arms"].values())
    return (
        [f"of {compared} comparisons, about {compared / 20:.0f} are beyond noise by chance"] if compared >= 20 else []
    )


def cut_answers(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Return a line for each benchmark in which the limit of tokens cut answers: they may have been right."""
    lines: dict[str, str] = {}
    for row in rows:
        counts = [
            f"{arm.get('num_cut', 0):,} of {arm.get('num_answers', 0):,} of {name}" for name, arm in row["arms"].items()
        ]
        if any(arm.get("num_cut") for arm in row["arms"].values()):
            lines[row["benchmark"]] = (
                f"{row['benchmark']}: answers cut at the task's limit of tokens, and scored as they stand: "
                f"{', '.join(counts)}"
            )
    return list(lines.values())


def heading_of(row: BenchmarkRow) -> str:
    """Format `gsm8k: exact_match, flexible-extract`; an arrow where less is better."""
    filtered = "" if row["filter"] == "none" else f", {row['filter']}"
    return f"{row['task']}: {row['metric']}{filtered}{'' if row['higher_is_better'] else ' ↓'}"


def score_text(score: BenchmarkScore) -> str:
    """Format `0.4123 ± 0.0101`."""
    return f"{_number(score['value'])}{_error(score['stderr'])}"


def difference_text(score: BenchmarkScore) -> str:
    """Format `-0.0200 ± 0.0065`; nothing for the teacher."""
    if "difference" not in score:
        return ""
    return f"{_number(score['difference'], '+')}{_error(score.get('difference_stderr'))}"


def _error(stderr: float | None) -> str:
    return "" if stderr is None else f" ± {_number(stderr)}"


def _number(value: float, sign: str = "") -> str:
    """Shares with four decimals; a perplexity may be large."""
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign}.4g}"
