"""Lines of a run's files: whole or not there, none lost to a full disk, none changed unseen."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from rayqd.errors import StorageError
from rayqd.runs.lines import LinesFile, keep_lines, read_lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def write(path: Path, *steps: int) -> None:
    lines = LinesFile(path)
    for step in steps:
        assert lines.append({"step": step}) is None


def steps(path: Path) -> list[Any]:
    return [row["step"] for row in read_lines(path)[0]]


def test_rows_come_back_in_order_whoever_wrote_them(path: Path) -> None:
    write(path, 1, 2)
    write(path, 3)
    assert steps(path) == [1, 2, 3]
    assert read_lines(path.with_name("none")) == ([], 0)


def test_half_a_line_of_a_killed_writer_is_cut_off_before_the_next(path: Path) -> None:
    write(path, 1)
    with path.open("ab") as stream:
        stream.write(b'{"step": 2, "lo')
    assert read_lines(path) == ([{"step": 1}], 0)
    write(path, 2)
    assert read_lines(path) == ([{"step": 1}, {"step": 2}], 0)


@pytest.mark.parametrize("length", [5, 1 << 16, (1 << 16) + 1, 300_000])
def test_half_a_line_of_any_length_is_cut_off(path: Path, length: int) -> None:
    write(path, 1)
    with path.open("ab") as stream:
        stream.write(b"x" * length)
    write(path, 2)
    assert steps(path) == [1, 2]
    path.write_bytes(b"x" * length)
    write(path, 3)
    assert steps(path) == [3]


def test_a_full_disk_loses_no_line_and_is_told_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LinesFile(path)
    assert lines.append({"step": 1}) is None
    real = os.write

    def full(descriptor: int, line: bytes) -> int:
        if len(line) > 7:
            return real(descriptor, line[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert lines.append({"step": 2}) == (
            f"{path} cannot be written (No space left on device): its lines wait in memory until it can"
        )
        assert lines.append({"step": 3}) is None
    assert read_lines(path) == ([{"step": 1}], 0)
    assert lines.append({"step": 4}) == f"{path} is written again, with the 2 lines that waited"
    assert read_lines(path) == ([{"step": step} for step in (1, 2, 3, 4)], 0)


def test_what_waits_is_written_at_the_end_or_its_lack_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = LinesFile(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        lines.append({"step": 1})
        with pytest.raises(StorageError, match=r"metrics\.jsonl lacks its last 1 lines \(No space left on device\)"):
            lines.finish()
    lines.finish()
    assert steps(path) == [1]


def test_rows_that_are_not_wanted_are_dropped(path: Path) -> None:
    write(path, 1, 2, 3)
    assert keep_lines(path, lambda row: row["step"] != 2) is None
    assert steps(path) == [1, 3]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "damage", [b"\x00" * 40, b'{"step": 2, "loss": 0.5, "checksum": "00"}', b"{", b"\xff\xfe", b"[2]"]
)
def test_damaged_lines_are_left_out_and_the_file_is_kept_as_it_was(path: Path, damage: bytes) -> None:
    write(path, 1, 3)
    first, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, damage, last, b""]))
    before = path.read_bytes()
    assert read_lines(path) == ([{"step": 1}, {"step": 3}], 1)
    line = keep_lines(path, lambda _: True)
    assert line == f"{path}: 1 damaged lines are left out; the file as it was is now metrics.jsonl-damaged"
    assert steps(path) == [1, 3]
    assert path.with_name("metrics.jsonl-damaged").read_bytes() == before
