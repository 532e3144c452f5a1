"""Directories under a URI are whole or absent, whatever breaks off; on a disk, and where only fsspec leads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rayqd.checksums import to_checked_json
from rayqd.errors import DamagedStorageError, StorageError
from rayqd.runs.storage.folder import MANIFEST, Folder, filesystem_of, redact
from rayqd.runs.storage.watched import Patience, WatchedFolder


class Recorded(MemoryFileSystem):
    """fsspec's file system in memory, which pyarrow does not know; writes down what is done and can be told to fail."""

    protocol = "recorded"
    store: dict[str, Any] = {}  # noqa: RUF012, the class's own, as in MemoryFileSystem
    pseudo_dirs: list[str] = [""]  # noqa: RUF012
    done: list[str] = []  # noqa: RUF012
    fails_at = ""

    def _note(self, what: str, path: str) -> None:
        event = f"{what} {Path(path).name.removesuffix('.partial')}"
        if event == self.fails_at:
            raise OSError(f"the disk of {path} caught fire")
        self.done.append(event)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            self._note("write", path)
        return super()._open(path, mode, **options)

    def _rm(self, path: str) -> None:
        if not path.endswith(".partial"):  # of a file that was moved to its place
            self._note("remove", path)
        super()._rm(path)


@pytest.fixture
def recorded() -> Iterator[type[Recorded]]:
    fsspec.register_implementation("recorded", Recorded, clobber=True)
    Recorded.store.clear()
    Recorded.pseudo_dirs[:] = [""]
    Recorded.done.clear()
    yield Recorded
    Recorded.fails_at = ""


@pytest.fixture(params=["disk", "fsspec", "in another process"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, recorded: type[Recorded]) -> Folder:
    if request.param == "in another process":
        return WatchedFolder(f"file://{tmp_path}/store", Patience(60.0))
    return Folder.open(f"file://{tmp_path}/store" if request.param == "disk" else "recorded://bucket/store")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "step-000001"
    (directory / "inner").mkdir(parents=True)
    (directory / "student.safetensors").write_bytes(bytes(range(256)) * 5000)
    (directory / "inner" / "note").write_text("ä\n")
    (directory / "empty").touch()
    return directory


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_directory_comes_back_to_the_bit(folder: Folder, checkpoint: Path, tmp_path: Path) -> None:
    folder.put(checkpoint, "one")
    assert folder.directories() == ["one"]
    folder.get("one", tmp_path / "back")
    assert files(tmp_path / "back") == files(checkpoint)
    manifest = json.loads(folder.read(f"one/{MANIFEST}") or b"")
    sizes = {name: listed["bytes"] for name, listed in manifest["files"].items()}
    assert sizes == {name: len(content) for name, content in files(checkpoint).items()}


def test_a_file_is_replaced_whole_and_missing_ones_are_none(folder: Folder) -> None:
    assert folder.read("config.toml") is None
    folder.write("config.toml", b"a long first version")
    folder.write("config.toml", b"short")
    assert folder.read("config.toml") == b"short"
    assert folder.directories() == []


def test_what_is_put_again_has_nothing_left_of_before(folder: Folder, checkpoint: Path, tmp_path: Path) -> None:
    folder.put(checkpoint, "one")
    (checkpoint / "empty").unlink()
    (checkpoint / "new").write_text("new")
    folder.put(checkpoint, "one")
    folder.get("one", tmp_path / "back")
    assert files(tmp_path / "back") == files(checkpoint)


def test_a_removed_directory_is_gone_and_removing_it_again_is_nothing(folder: Folder, checkpoint: Path) -> None:
    folder.put(checkpoint, "one")
    folder.put(checkpoint, "two")
    folder.remove("one")
    folder.remove("one")
    assert folder.directories() == ["two"]
    with pytest.raises(StorageError, match=r"store/one: is not there, or was never finished$"):
        folder.get("one", checkpoint.with_name("back"))


def test_the_manifest_is_written_last_and_removed_first(recorded: type[Recorded], checkpoint: Path) -> None:
    folder = Folder.open("recorded://bucket/store")
    folder.put(checkpoint, "one")
    assert recorded.done[-1] == f"write {MANIFEST}"
    assert sorted(recorded.done[:-1]) == ["write empty", "write note", "write student.safetensors"]
    recorded.done.clear()
    folder.put(checkpoint, "one")
    assert recorded.done[0] == f"remove {MANIFEST}"


def test_an_upload_that_breaks_off_leaves_nothing_that_could_be_taken_for_a_checkpoint(
    recorded: type[Recorded], checkpoint: Path
) -> None:
    folder = Folder.open("recorded://bucket/store")
    folder.put(checkpoint, "one")
    recorded.fails_at = "write student.safetensors"
    with pytest.raises(StorageError, match=r"^recorded://bucket/store/one: cannot be written: .* caught fire$"):
        folder.put(checkpoint, "one")
    assert folder.directories() == []
    recorded.fails_at = ""
    folder.put(checkpoint, "one")
    assert folder.directories() == ["one"]


def test_a_file_cut_short_is_found_and_nothing_half_is_left_here(checkpoint: Path, tmp_path: Path) -> None:
    folder = Folder.open(f"file://{tmp_path}/store")
    folder.put(checkpoint, "one")
    (tmp_path / "store" / "one" / "inner" / "note").write_bytes(b"\n")
    with pytest.raises(StorageError, match=r"store/one/inner/note: has 1 bytes of 3$"):
        folder.get("one", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["../secret", "inner/../../secret", "/etc/hostname"])
def test_a_manifest_that_names_what_is_outside_is_damaged(checkpoint: Path, tmp_path: Path, name: str) -> None:
    folder = Folder.open(f"file://{tmp_path}/store")
    folder.put(checkpoint, "one")
    manifest = {"files": {name: {"bytes": 1, "xxh3_128": "0"}}}
    folder.write(f"one/{MANIFEST}", to_checked_json(manifest).encode())
    with pytest.raises(DamagedStorageError, match=rf"one/{MANIFEST}: names '{name}', which is outside of it$"):
        folder.get("one", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_file_whose_name_leads_outside_is_never_copied(
    recorded: type[Recorded], checkpoint: Path, tmp_path: Path
) -> None:
    folder = Folder.open("recorded://bucket/store")
    folder.put(checkpoint, "one")
    name = next(each for each in Recorded.store if each.endswith("/one/student.safetensors"))
    Recorded.store[name.replace("student", "../../evil")] = Recorded.store[name]
    with pytest.raises(DamagedStorageError, match=r"store/one: names '[.][.].*', which is outside of it$"):
        folder.get("one", tmp_path / "back" / "one")
    assert not list(tmp_path.rglob("evil*"))


def test_checking_the_rights_leaves_nothing_behind(folder: Folder) -> None:
    folder.check_rights()
    assert folder.directories() == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, where a directory should be")
    with pytest.raises(StorageError, match=rf"^file://{tmp_path}/store/run: cannot be used as storage: [^\n]*$"):
        Folder.open(f"file://{tmp_path}/store").inside("run").check_rights()


@pytest.mark.parametrize("uri", ["nowhere://bucket/run", "s4://bucket"])
def test_a_scheme_that_nobody_knows_is_one_line(uri: str) -> None:
    with pytest.raises(StorageError, match=rf"^{uri}: cannot be opened: Unrecognized filesystem type in URI: {uri}$"):
        Folder.open(uri)


def test_the_options_of_a_uri_are_not_shown() -> None:
    assert redact("s3://bucket/runs?endpoint_override=10.0.0.1:9000&scheme=http") == "s3://bucket/runs"
    assert redact("s3://key:secret@bucket/runs") == "s3://bucket/runs"


@pytest.mark.parametrize(("option", "background_writes"), [("", False), ("&tls_verify_certificates=false", True)])
def test_a_bucket_takes_a_file_as_it_is_sent_and_keeps_none_in_memory(option: str, background_writes: bool) -> None:
    uri = f"s3://key:secret@bucket/runs?region=us-east-1&scheme=http&endpoint_override=host:1{option}"
    filesystem, path = filesystem_of(uri)
    expected = {**type(filesystem).from_uri(uri)[0].__reduce__()[1][0], "background_writes": background_writes}
    assert (filesystem.__reduce__()[1][0], path) == (expected, "bucket/runs")
