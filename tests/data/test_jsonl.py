import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayqd.data.jsonl import JsonlFile
from rayqd.errors import RunError, StorageError


def test_what_was_added_is_there_for_everybody_at_once_and_for_the_next_who_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with JsonlFile(path) as lines:
        lines.append({"row": 3, "text": "zwei\u2028Zeilen\n"})
        assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == [
            {"row": 3, "text": "zwei\u2028Zeilen\n"}
        ]
    with JsonlFile(path) as lines:
        lines.append({"row": 1})
        assert [row["row"] for row in lines.rows()] == [3, 1]


@pytest.mark.parametrize("size", [10, 70_000, 200_000])
def test_half_a_line_of_a_writer_that_was_killed_is_taken_off_and_nothing_else(tmp_path: Path, size: int) -> None:
    path = tmp_path / "rows.jsonl"
    whole = b'{"row": 1}\n' + json.dumps({"row": 2, "text": "x" * size}).encode() + b"\n"
    for cut in (len(whole), len(whole) - 1, len(whole) - 5, 12, 11, 10, 3, 0):
        path.write_bytes(whole[:cut])
        with JsonlFile(path) as lines:
            lines.append({"row": 9})
            kept = [row["row"] for row in lines.rows()]
        assert kept == [*[1, 2][: whole[:cut].count(b"\n")], 9]


def test_a_damaged_line_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"row": 1}\n[2]\n{"row": 3}\n')
    with JsonlFile(path) as lines, pytest.raises(RunError, match=r"rows\.jsonl:2: the line is damaged"):
        list(lines.rows())


@pytest.mark.slow
def test_no_two_processes_write_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    program = f"from pathlib import Path\nfrom rayqd.data.jsonl import JsonlFile\nJsonlFile(Path({str(path)!r}))"
    with JsonlFile(path):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"RunError: {path} is in use: another process is writing it" in done.stderr.splitlines()[-1]
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_disk_that_is_full_is_told_in_one_line_and_costs_no_line_written_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"

    def half(file: int, data: bytes, write: object = os.write) -> int:
        if len(data) < 30:
            raise OSError(28, "No space left on device")
        return write(file, data[: len(data) - 20])  # type: ignore[operator]

    with JsonlFile(path) as lines:
        lines.append({"row": 1})
        monkeypatch.setattr("os.write", half)
        with pytest.raises(StorageError, match=r"rows\.jsonl could not be written: No space left on device; make room"):
            lines.append({"row": 2, "text": "x" * 50})
        monkeypatch.undo()
    with JsonlFile(path) as lines:
        assert [row["row"] for row in lines.rows()] == [1]


def test_sorting_moves_lines_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = ['{"row":  2}\n', '{"row": 0, "é": 1}\n', '{"row": 1}\n']
    path.write_text("".join(texts))
    with JsonlFile(path) as lines:
        lines.sort(lambda row: {2: 1, 0: 2, 1: 0}[row["row"]])
    assert path.read_text() == "".join([texts[2], texts[0], texts[1]])
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
