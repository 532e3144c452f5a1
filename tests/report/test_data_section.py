"""The data on a run's page."""

import datetime
from typing import Any

from rayqd.report.data import data_page, data_section
from rayqd.runs.data_file import Piece, SeenRow
from tests.console.test_data_lines import DATA, LEFT_OUT, MIXED
from tests.report.test_report import CONFIG, report, said


def of_row(text: str, **changed: Any) -> Any:
    from dataclasses import replace

    row = SeenRow(
        row=3, num_tokens=9, num_trained=4, pieces=(Piece(text=text, is_trained=True, is_special=False),), end=""
    )
    return replace(DATA, first=(replace(row, **changed),))


def test_the_page_of_a_run_tells_its_data() -> None:
    page = report(data=DATA)
    text = said(page)
    assert "Row 3 9 tokens, 4 of them trained on" in text
    assert all(line in text for line in ("5 too long, training", *LEFT_OUT.first, "1 to 8", "<|end|> ends it"))
    assert '<mark>an [bold]answer</mark><mark><span class="special">&lt;|end|&gt;</span></mark>' in page
    assert "Tokens of a row" not in said(report())


def test_what_rows_say_is_text_and_no_markup() -> None:
    section = str(data_section(of_row("<script>alert(1)</script>")))
    assert "<script>" not in section
    assert "&lt;script&gt;" in section


def test_long_rows_are_whole_on_the_page_of_the_command_alone() -> None:
    data = of_row("x" * 9000)
    assert "x" * 9000 not in str(data_section(data))
    assert "7,000 characters" in str(data_section(data))
    assert "x" * 9000 in data_page(CONFIG, data, datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC))


def test_several_sources_are_rows_of_their_own() -> None:
    page = str(data_section(MIXED))
    assert "code: b.jsonl" in said(page)
    assert all(text in page for text in ("75.0%", "1.20", "25.0%", "0.40", "Row 3 of chat"))
    assert said(page).count("5 too long") == 2
    shown = said(data_page(CONFIG, MIXED, datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC)))
    assert "0.40 to 1.20" in shown
