"""A file that is one JSON array: its elements are found a piece after the other."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rayqd.data.readers import json_array
from rayqd.errors import DataError


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
