"""Benchmarks on a run's page: the models side by side, and what the student's difference means."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from rayqd.console.benchmark_table import (
    NOTES,
    chance,
    cut_answers,
    difference_text,
    drop_group_members,
    heading_of,
    score_text,
)
from rayqd.report import page
from rayqd.report.page import Column
from rayqd.runs.benchmarks import BenchmarkRow


def benchmarks(rows: Sequence[BenchmarkRow]) -> Markup:
    """Draw a line for each metric; all rows were measured on the same models."""
    shown = drop_group_members(rows)
    titles = [Column(title=""), *(Column(title=name, kind="number") for name in shown[0]["arms"])]
    titles += [Column(title="student against teacher", kind="number"), Column(title="")]
    lines = [
        [
            Markup("{}<small>{} documents</small>").format(heading_of(row), f"{row['num_documents']:,}"),
            *(score_text(arm) for arm in row["arms"].values()),
            difference_text(row["arms"]["student"]),
            row["arms"]["student"].get("verdict") or "",
        ]
        for row in shown
    ]
    return page.section(
        "Benchmarks", page.table(titles, lines), note=". ".join([*NOTES, *chance(shown), *cut_answers(shown)]) + "."
    )
