"""What is no data file, or another one than its name or the settings say, is told in one line."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from rayqd.config.sections import DataConfig
from rayqd.data import read_rows
from rayqd.data.examples import load_examples
from rayqd.data.readers import read_file
from rayqd.errors import DataError

ROWS = [{"prompt": f"Name colour {i}.", "completion": f"It is red number {i}."} for i in range(8)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
HALF_A_GZIP = gzip.compress(TEXT.encode(), mtime=0)[:40]  # the same bytes in every process that collects tests


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "rows.jsonl",
            b"PAR1....",
            "is a parquet file by its first bytes, and JSON Lines by its name: rename it to rows.p",
        ),
        ("rows.parquet", TEXT.encode(), "is JSON Lines by its first bytes, and a parquet file by its name: rename it"),
        ("rows.csv", TEXT.encode(), "is JSON Lines by its first bytes, and comma-separated values by its name"),
        ("rows.jsonl", b"PK\x03\x04..", "is a ZIP archive (or an office document) by its first bytes: give .jsonl, "),
        ("rows.txt", b"\x89PNG\r\n\x1a\n", "is a PNG picture by its first bytes: give .jsonl, "),
        ("rows", b"\x00\x01\x02\x03\x04", "its first bytes (00 01 02 03) are of no kind that rayqd reads: give .jsonl"),
        ("rows.jsonl", TEXT.encode("utf-16"), "is text in UTF-16 by its first bytes: save it as UTF-8"),
        ("rows.csv", "prompt,completion\n".encode("utf-16-le"), "is text in UTF-16 by its first bytes: save it as"),
        ("rows.txt", "Once upon".encode("utf-16-be"), "is text in UTF-16 by its first bytes: save it as UTF-8"),
        (
            "rows.jsonl",
            json.dumps(ROWS[0], indent=1).encode(),
            "has JSON objects over several lines: write one a line",
        ),
        ("rows.dat", b"some words", "is text, but neither JSON nor of a name that says what: call it .txt or .csv"),
        ("rows.jsonl.gz", HALF_A_GZIP, "cannot be decompressed (Compressed file ended before"),
        ("rows.json", b'[{"prompt": 1,\n}]', ":2: the array is broken here ("),
        ("rows.csv", b"", "is empty: its first line must name the columns"),
        ("rows.parquet", b"PAR1 and no more", "cannot be read as a parquet file: "),
    ],
)
def test_a_file_that_is_something_else_is_named_by_its_first_bytes(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_file(path, str(path))
    assert str(caught.value).startswith(f"{path}{'' if said.startswith(':') else ': '}{said}")
    assert "\n" not in str(caught.value)


def test_a_subset_of_what_has_none_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT)
    with pytest.raises(DataError, match=r'is no data set with subsets: leave data\.subset="main" out'):
        read_rows(DataConfig(source=str(path), subset="main"))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("rows.csv", "prompt;completion\nq;a\n", "has ';' between its columns and not ',': write ',' between them"),
        ("rows.csv", "prompt\tcompletion\nq\ta\n", r"has '\\t' between its columns and not ',': call it .tsv"),
        ("rows.json", '{\n "data": []\n}', "is one JSON object over several lines, and no rows: write its rows as an"),
        (
            "rows.json",
            '{"data": [{"prompt": "q"}]}',
            "the keys data: if data holds the rows, write them as an array",
        ),
    ],
)
def test_a_file_of_rows_in_another_form_is_told_as_what_it_is(name: str, text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=what):
        read_rows(DataConfig(source=str(tmp_path / name)))


def test_a_file_without_rows_is_told_as_that(tmp_path: Path, make_tokenizer: Any) -> None:
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(DataError, match=r"rows.json has no rows: give other data"):
        load_examples(
            make_tokenizer(), DataConfig(source=str(tmp_path / "rows.json")), seed=0, num_needed=1, context_length=4096
        )


def test_of_a_long_file_those_rows_are_checked_that_a_run_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayqd.data.sources.CHECKED_WHOLE", 8)
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT + "broken\n")
    rows = read_rows(DataConfig(source=str(path)))
    assert rows.row(7) == [
        {"role": "user", "content": ROWS[7]["prompt"]},
        {"role": "assistant", "content": ROWS[7]["completion"]},
    ]
    with pytest.raises(DataError, match=r"rows\.jsonl:9: the line is not one JSON object"):
        rows.row(8)


def test_a_split_expression_that_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT)
    with pytest.raises(
        DataError, match=r'rows\.jsonl: the split "train\[:x\]" cannot be taken of its 8 rows'
    ) as caught:
        read_rows(DataConfig(source=str(path), split="train[:x]"))
    assert "\n" not in str(caught.value)
