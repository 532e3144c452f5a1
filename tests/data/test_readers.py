"""The same eight rows in every kind of file, each written by the library that the format belongs to."""

import bz2
import csv
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayqd.config.sections import DataConfig
from rayqd.data import read_rows
from rayqd.data.examples import load_examples
from rayqd.data.readers import json_array, read_file
from rayqd.data.readers.files import cached_path
from rayqd.errors import DataError

ROWS = [{"prompt": f"Name colour {i}.", "completion": f"It is red number {i}."} for i in range(8)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)
HALF_A_GZIP = gzip.compress(TEXT.encode(), mtime=0)[:40]  # the same bytes in every process that collects tests


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def _csv(path: Path, rows: list[dict[str, str]] = ROWS, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def _zst(path: Path) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(TEXT.encode())


def _arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_text(TEXT),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "lines.json": lambda path: path.write_text(TEXT),
    "rows": lambda path: path.write_text(TEXT),
    "rows.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "rows.arrow": _arrow,
    "rows.csv": _csv,
    "rows.tsv": lambda path: _csv(path, delimiter="\t"),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "rows.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(TEXT.encode())),
    "rows.jsonl.xz": lambda path: path.write_bytes(lzma.compress(TEXT.encode())),
    "rows.jsonl.zst": _zst,
}


def _read(source: str, **settings: Any) -> list[object]:
    rows = read_rows(DataConfig(source=source, **settings))
    return [rows.row(index) for index in range(len(rows))]


def _expected(rows: list[dict[str, str]] = ROWS) -> list[object]:
    return [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    assert _read(str(tmp_path / name)) == _expected()


def test_cells_of_a_csv_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in [("007", "1e5"), ("NA", "null"), ("1", "2")]]
    _csv(tmp_path / "rows.csv", rows)
    assert _read(str(tmp_path / "rows.csv")) == _expected(rows)


def test_plain_text_is_a_row_a_line_without_the_blank_ones_and_said(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(b"Once upon a time.\r\n\n  \t\n{It was big.\n" * 2)
    rows = read_rows(DataConfig(source=str(path)))
    texts = [rows.row(index) for index in range(len(rows))]
    assert texts == [[{"role": "text", "content": text}] for text in ("Once upon a time.", "{It was big.")] * 2
    assert rows.remarks == (f"{path}: taken as plain text, a row a line",)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 1 << 20])
def test_lines_are_the_same_whatever_the_pieces_that_a_file_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("rayqd.data.readers.lines._CHUNK_BYTES", size)
    path = tmp_path / "rows.txt"
    for content in (b"", b"\n", b"a", b"a\nbc\n", b"\n\n a\r\n \t\n\nbc\n\n", b"\xef\xbb\xbfabc\n\nd", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        table = read_file(path, "rows.txt")
        lines = [line.removesuffix(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
        expected = [(f"rows.txt:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
        found = [(table.location(index), table.fetch(index)) for index in range(table.num_rows)]
        assert found == [(location, {"text": line.decode()}) for location, line in expected]


def test_a_changed_compressed_file_is_decompressed_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(TEXT.encode()))
    before = cached_path(path)
    assert len(_read(str(path))) == 8
    assert before.read_text() == TEXT
    path.write_bytes(gzip.compress(TEXT[: len(TEXT) // 2].rpartition("\n")[0].encode()))
    assert _read(str(path)) == _expected()[: len(_read(str(path)))]
    assert cached_path(path) != before


def test_a_pattern_takes_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, rows in (("b.jsonl", ROWS[3:]), ("a.jsonl", ROWS[:3])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _read(str(tmp_path / "*.jsonl")) == _expected()
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"b\.jsonl:1: neither messages nor"):
        _read(str(tmp_path / "*.jsonl"))
    with pytest.raises(DataError, match="no file has such a name: check the pattern"):
        _read(str(tmp_path / "*.gone"))


@pytest.mark.parametrize(
    ("split", "rows"),
    [("train[:25%]", [0, 1]), ("train[2:4]", [2, 3]), ("train[-1:]", [7]), ("train[:1]+train[6:]", [0, 6, 7])],
)
def test_a_part_of_a_file_is_taken_as_datasets_takes_it(tmp_path: Path, split: str, rows: list[int]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT)
    assert datasets.Dataset.from_list(ROWS).num_rows == 8
    assert _read(str(path), split=split) == [_expected()[row] for row in rows]


def test_a_split_expression_that_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT)
    with pytest.raises(
        DataError, match=r'rows\.jsonl: the split "train\[:x\]" cannot be taken of its 8 rows'
    ) as caught:
        _read(str(path), split="train[:x]")
    assert "\n" not in str(caught.value)


def test_what_save_to_disk_wrote_is_read_and_its_splits_are_named(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": rows, "validation": rows.select([7])}).save_to_disk(tmp_path / "saved")
    assert _read(str(tmp_path / "saved")) == _expected()
    assert _read(str(tmp_path / "saved"), split="validation[:1]") == _expected()[7:]
    with pytest.raises(DataError, match=r'no split "validatoin": did you mean validation\? give one of train, valid'):
        _read(str(tmp_path / "saved"), split="validatoin")


def test_a_directory_has_the_splits_and_subsets_that_datasets_finds_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files: a.jsonl\n- config_name: other\n  data_files: b.jsonl\n---\n"
    )
    (folder / "a.jsonl").write_text(TEXT)
    (folder / "b.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert _read(str(folder), subset="main") == _expected()
    assert _read(str(folder), subset="other", split="train[:100%]") == _expected()[:1]
    for settings, said in (
        ({"subset": "mian"}, 'there is no subset "mian": did you mean main? give one of main, other as data.subset'),
        ({}, "it has the subsets main, other: name one as data.subset"),
        ({"subset": "main", "split": "test"}, 'there is no split "test": give one of train'),
    ):
        with pytest.raises(DataError) as caught:
            _read(str(folder), **settings)
        assert str(caught.value) == f'cannot load the data set "{folder}": {said}'


def test_a_url_that_storage_takes_is_fetched_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT)
    url = f"file://{path}"
    assert _read(url) == _expected()
    rows = read_rows(DataConfig(source=url))
    assert rows.name == url
    with pytest.raises(DataError, match=r"^cannot fetch file:///gone/rows\.jsonl: there is no such file$"):
        _read("file:///gone/rows.jsonl")


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
        _read(str(path), subset="main")


def test_of_a_long_file_those_rows_are_checked_that_a_run_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayqd.data.sources.CHECKED_WHOLE", 8)
    path = tmp_path / "rows.jsonl"
    path.write_text(TEXT + "broken\n")
    rows = read_rows(DataConfig(source=str(path)))
    assert rows.row(7) == _expected()[7]
    with pytest.raises(DataError, match=r"rows\.jsonl:9: the line is not one JSON object"):
        rows.row(8)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64, 1 << 20])
def test_an_array_is_found_in_pieces_of_any_size(chunk_bytes: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk_bytes)
    elements = [
        {"prompt": 'a "quoted" \\ é 漢 \U0001f600 ]},{[', "completion": "\u2028\n"}, {}, [], [[1, [2]], {"a": [{}]}],
        12, -0.5e-7, float("-inf"), True, None, "", "]", {"deep": {"er": {"": [None, False, 1e300]}}},
    ]  # fmt: skip
    for number, options in enumerate([{}, {"indent": 25}, {"ensure_ascii": False}, {"separators": (",", ":")}]):
        for values in (elements, [], elements[4:5]):
            path = tmp_path / f"{number}.json"
            path.write_text(json.dumps(values, **options) + " \n", encoding="utf-8-sig" if number else "utf-8")
            table = json_array.read_json_array(path, "rows")
            assert [table.fetch(index) for index in range(table.num_rows)] == values


@pytest.mark.parametrize("chunk_bytes", [3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"a": 1},\n {"b": 2}\n {"c": 3}]', "rows:3: the array is broken here (expecting , or ], got {, column 2)"),
        ('[{"a": 1},\n {"b": tru}]', "rows:2: the array is broken here (Expecting value, column 8)"),
        ('[{"a": 1},\n\n]', "rows:3: the array is broken here (Expecting value, column 1)"),
        ('[{"a": "b}]', "rows:1: the array is broken here (Unterminated string starting at, column 8)"),
        ('[{"a": 1}]\n[]', "rows:2: the array is broken here (something stands behind it, column 1)"),
        ('[{"a": 1}', "rows:1: the array is broken here (expecting , or ], got the end of the file, column 10)"),
    ],
)
def test_a_broken_array_is_told_by_line_and_column(
    text: str, what: str, chunk_bytes: int, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        json_array.read_json_array(path, "rows")
    assert str(caught.value).startswith(what)


def test_an_array_is_not_read_whole(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_array, "_CHUNK_BYTES", 1 << 16)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "x" * 1000, "completion": "y"}] * 8000))
    tracemalloc.start()
    try:
        table = json_array.read_json_array(path, "rows")
        table.fetch(7999)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert table.num_rows == 8000
    assert peak < path.stat().st_size / 8  # pieces of 1/128 of the file, and 16 bytes a row


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


def test_a_directory_of_several_kinds_says_which_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "mixed"
    directory.mkdir()
    (directory / "a.jsonl").write_text(TEXT)
    assert read_rows(DataConfig(source=str(directory))).remarks == ()
    _csv(directory / "b.csv")
    (remark,) = read_rows(DataConfig(source=str(directory))).remarks
    assert remark.endswith("mixed: has files of several kinds, and its .jsonl alone are read, none of .csv")


def test_a_file_without_rows_is_told_as_that(tmp_path: Path, make_tokenizer: Any) -> None:
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(DataError, match=r"rows.json has no rows: give other data"):
        load_examples(
            make_tokenizer(), DataConfig(source=str(tmp_path / "rows.json")), seed=0, num_needed=1, context_length=4096
        )
