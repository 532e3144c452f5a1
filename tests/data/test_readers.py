"""The same eight rows in every kind of file, each written by the library that the format belongs to."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayqd.config.sections import DataConfig
from rayqd.data import read_rows
from rayqd.data.readers import read_file
from rayqd.data.readers.files import cached_path
from rayqd.errors import DataError

ROWS = [{"prompt": f"Name colour {i}.", "completion": f"It is red number {i}."} for i in range(8)]
TEXT = "".join(json.dumps(row) + "\n" for row in ROWS)


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


def test_a_directory_of_several_kinds_says_which_is_read(tmp_path: Path) -> None:
    directory = tmp_path / "mixed"
    directory.mkdir()
    (directory / "a.jsonl").write_text(TEXT)
    assert read_rows(DataConfig(source=str(directory))).remarks == ()
    _csv(directory / "b.csv")
    (remark,) = read_rows(DataConfig(source=str(directory))).remarks
    assert remark.endswith("mixed: has files of several kinds, and its .jsonl alone are read, none of .csv")
