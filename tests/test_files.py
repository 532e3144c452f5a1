"""What is written is whole or absent, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayqd.errors import StorageError
from rayqd.files import (
    directory_bytes,
    free_bytes,
    join_read,
    remove_directory,
    remove_leftovers,
    replace_directory,
    replace_file,
    write_text,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_keeps_its_old_content_until_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")
    with replace_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def write_to_full_disk(path: Path) -> None:
    path.write_text("ne")
    raise OSError(errno.ENOSPC, "full")


def test_a_block_that_raises_leaves_the_old_content_and_no_trace(tmp_path: Path) -> None:
    path, directory = tmp_path / "a.json", tmp_path / "d"
    write_text(path, "old")
    with replace_directory(directory) as partial:
        (partial / "one").write_text("old")
    with pytest.raises(OSError, match="full"), replace_file(path) as partial:
        write_to_full_disk(partial)
    with pytest.raises(OSError, match="full"), replace_directory(directory) as partial:
        write_to_full_disk(partial / "one")
    assert path.read_text() == (directory / "one").read_text() == "old"
    assert names(tmp_path) == ["a.json", "d"]


def test_text_is_utf8_whatever_the_locale_and_a_failure_names_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "λ")
    assert (tmp_path / "a").read_bytes() == b"\xce\xbb"
    with pytest.raises(StorageError, match="missing/a could not be written: No such file or directory"):
        write_text(tmp_path / "missing" / "a", "")


def test_a_directory_takes_the_place_of_another_and_of_what_a_killed_process_left(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "d"
    killed = f"""
import os, signal
from pathlib import Path
from rayqd.files import replace_directory
with replace_directory(Path({str(directory)!r})) as partial:
    (partial / "half").write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -signal.SIGKILL
    assert not directory.exists()
    for content in ("first", "second"):
        with replace_directory(directory) as partial:
            assert names(partial) == []
            (partial / content).write_text(content)
        assert names(directory) == [content]
    assert names(directory.parent) == ["d"]
    assert directory_bytes(directory) == len("second")


def test_of_two_processes_that_make_the_same_directory_the_first_ones_stays(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    with replace_directory(directory, concurrent=True) as late:
        (late / "late").touch()
        early = directory.with_name("early")
        early.mkdir()
        early.rename(directory)  # another process, whose passing name has another number
        inode = directory.stat().st_ino
    assert directory.stat().st_ino == inode
    assert names(tmp_path) == ["d"]


def test_processes_that_write_the_same_file_do_not_share_a_passing_name(tmp_path: Path) -> None:
    with replace_file(tmp_path / "a", concurrent=True) as partial:
        assert str(os.getpid()) in partial.name
        partial.touch()


def test_free_space_is_told_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(status.f_bavail * status.f_frsize, rel=0.01)


def test_a_directory_whose_removal_is_broken_off_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "step-000001"
    directory.mkdir()
    (directory / "a").write_text("a")

    def break_off(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", break_off)
        with pytest.raises(KeyboardInterrupt):
            remove_directory(directory)
    assert names(tmp_path) == [".step-000001.removed"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []
    remove_directory(directory)  # of which there is nothing


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/a", "a//b", "", ".", "a\\..\\b", "a\0b"])
def test_a_name_that_was_read_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside of it"):
        join_read(tmp_path, name)
    assert join_read(tmp_path, "a/b..c") == tmp_path / "a" / "b..c"
