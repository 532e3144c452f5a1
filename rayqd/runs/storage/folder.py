"""A folder under a URI: files, and directories that are whole or absent.

An object store cannot rename. So a directory is uploaded file by file and its manifest last, and one without a manifest
is not there; to remove a directory is to remove its manifest first.

    step-000100/student.safetensors
    step-000100/optimizer.safetensors
    step-000100/manifest.json          {"files": {"student.safetensors": {"bytes": 1048, "xxh3_128": "5e..."}, ...}}
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from rayqd.checksums import DamagedError, digest_file, from_checked_json, ignore_progress, to_checked_json
from rayqd.errors import DamagedStorageError, StorageError
from rayqd.files import join_read, replace_directory
from rayqd.runs.storage.transfer import send, watch_growth

MANIFEST = "manifest.json"

_Listed = dict[str, int | str] | int  # of a file: its size and digest; in manifests of earlier versions its size

_OBJECT_STORES = (
    "s3",
    "gcs",
    "abfs",
)  # pyarrow's names: no directories, no rename, and a file appears when it is whole


_UNTOLD = (
    "tls_verify_certificates",
    "smart_defaults",
)  # options of a URI that pyarrow's file system does not tell again


class Folder:
    """A folder by its URI. Every method raises StorageError, in one line that names it."""

    on_progress: Callable[[], None] = staticmethod(ignore_progress)  # called while a directory is copied

    def __init__(self, filesystem: Any, path: str, uri: str) -> None:
        self._filesystem = filesystem
        self._path = path
        self._uri = uri
        self._is_object_store = filesystem.type_name in _OBJECT_STORES

    @classmethod
    def open(cls, uri: str) -> Folder:
        """Open an absolute path, or a URI that pyarrow or an installed fsspec implementation knows."""
        with _storage_errors(redact(uri), "opened"):
            filesystem, path = filesystem_of(uri)
        return cls(filesystem, path.rstrip("/"), redact(uri).rstrip("/"))

    def __str__(self) -> str:
        return self._uri

    def inside(self, name: str) -> Folder:
        """Return the folder `name` in this one."""
        return Folder(self._filesystem, f"{self._path}/{name}", f"{self._uri}/{name}")

    def check_rights(self) -> None:
        """Write a file, list it, and remove it."""
        name = f".probe-{uuid.uuid4().hex[:8]}"
        with _storage_errors(self._uri, "used as storage"):
            if not self._is_object_store:
                self._filesystem.create_dir(self._path, recursive=True)
            send(io.BytesIO(), self._filesystem, f"{self._path}/{name}", self.on_progress)
            self.directories()
            self._filesystem.delete_file(f"{self._path}/{name}")

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""
        with _storage_errors(f"{self}/{name}", "read"):
            try:
                with self._filesystem.open_input_stream(f"{self._path}/{name}", compression=None) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file; nobody sees half of it."""
        with _storage_errors(f"{self}/{name}", "written"):
            self._write(name, io.BytesIO(content))

    def write_file(self, name: str, file: Path) -> None:
        """Make or replace a file by what `file` has now; nobody sees half of it."""
        with _storage_errors(f"{self}/{name}", "written"), file.open("rb") as source:
            self._write(name, source)

    def directories(self) -> list[str]:
        """Return the names of the directories here that are whole."""
        fs = _pyarrow_fs()
        with _storage_errors(self._uri, "listed"):
            entries = self._filesystem.get_file_info(fs.FileSelector(self._path, allow_not_found=True))
            names = [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]
            manifests = self._filesystem.get_file_info([f"{self._path}/{name}/{MANIFEST}" for name in names])
        return sorted(name for name, file in zip(names, manifests, strict=True) if file.type == fs.FileType.File)

    def put(self, directory: Path, name: str) -> None:
        """Upload `directory` as `name`, in place of what is there."""
        self.remove(name)
        with _storage_errors(f"{self}/{name}", "written"):
            files = sorted(file for file in directory.rglob("*") if file.is_file())
            described = {
                file.relative_to(directory).as_posix(): {
                    "bytes": file.stat().st_size,
                    "xxh3_128": digest_file(file, self.on_progress),
                }
                for file in files
            }
            if not self._is_object_store:
                self._filesystem.create_dir(f"{self._path}/{name}", recursive=True)
            for file in described:
                self._upload(directory / file, f"{self._path}/{name}/{file}")
        self.write(f"{name}/{MANIFEST}", to_checked_json({"files": described}).encode())

    def get(self, name: str, directory: Path) -> None:
        """Download `name` as `directory`, which is whole or absent too; DamagedStorageError where it is not as put."""
        fs = _pyarrow_fs()
        manifest = self.read(f"{name}/{MANIFEST}")
        if manifest is None:
            raise StorageError(f"{self}/{name}: is not there, or was never finished")
        try:
            listed = cast("dict[str, _Listed]", from_checked_json(manifest)["files"])
        except (DamagedError, KeyError) as error:
            raise DamagedStorageError(f"{self}/{name}/{MANIFEST}: {error}") from error
        self._check_names(name)
        with _storage_errors(f"{self}/{name}", f"downloaded to {directory}"), replace_directory(directory) as partial:
            with watch_growth(partial, self.on_progress):
                fs.copy_files(f"{self._path}/{name}", str(partial), self._filesystem, fs.LocalFileSystem())
            (partial / MANIFEST).unlink()
            for file, expected in listed.items():
                place = self._join(partial, file, f"{name}/{MANIFEST}")
                if (fault := _find_fault(place, expected, self.on_progress)) is not None:
                    raise DamagedStorageError(f"{self}/{name}/{file}: {fault}")

    def _check_names(self, name: str) -> None:
        """Raise DamagedStorageError where a directory has something that would be copied to outside of its copy."""
        fs = _pyarrow_fs()
        path = f"{self._path}/{name}"
        with _storage_errors(f"{self}/{name}", "listed"):
            entries = self._filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        for entry in entries:  # some file systems tell paths without the slash that others begin with
            self._join(Path(), entry.path.strip("/").removeprefix(f"{path.strip('/')}/"), name)

    def _join(self, directory: Path, read: str, name: str) -> Path:
        try:
            return join_read(directory, read)
        except ValueError as error:
            raise DamagedStorageError(f"{self}/{name}: {error}") from None

    def disown(self, name: str) -> None:
        """Have a directory count as absent from now on; its files stay, and its manifest as `manifest-damaged.json`."""
        if (manifest := self.read(f"{name}/{MANIFEST}")) is not None:
            self.write(f"{name}/manifest-damaged.json", manifest)
            with _storage_errors(f"{self}/{name}", "put aside"):
                self._filesystem.delete_file(f"{self._path}/{name}/{MANIFEST}")

    def remove(self, name: str) -> None:
        """Remove a directory, whole or not; nothing happens where there is none."""
        fs = _pyarrow_fs()
        path = f"{self._path}/{name}"
        with _storage_errors(f"{self}/{name}", "removed"):
            manifest, directory = self._filesystem.get_file_info([f"{path}/{MANIFEST}", path])
            if manifest.type == fs.FileType.File:
                self._filesystem.delete_file(f"{path}/{MANIFEST}")
            if directory.type == fs.FileType.Directory:
                self._filesystem.delete_dir(path)

    def _write(self, name: str, source: IO[bytes]) -> None:
        path = f"{self._path}/{name}"
        if self._is_object_store:
            send(source, self._filesystem, path, self.on_progress)
            return
        self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        send(source, self._filesystem, f"{path}.partial", self.on_progress)
        self._filesystem.move(f"{path}.partial", path)

    def _upload(self, file: Path, path: str) -> None:
        if not self._is_object_store:
            self._filesystem.create_dir(path.rpartition("/")[0], recursive=True)
        with file.open("rb") as source:
            send(source, self._filesystem, path, self.on_progress)


def _find_fault(file: Path, expected: _Listed, on_progress: Callable[[], None]) -> str | None:
    """Say how a downloaded file differs from what its manifest lists; None where it does not."""
    size = expected if isinstance(expected, int) else expected["bytes"]
    if not file.is_file():
        return "is missing"
    if (num_bytes := file.stat().st_size) != size:
        return f"has {num_bytes} bytes of {size}"
    if not isinstance(expected, int) and digest_file(file, on_progress) != expected["xxh3_128"]:
        return "is not what was written"
    return None


def redact(uri: str) -> str:
    """Return `uri` without its options and its password, which may say more than everybody should read."""
    return re.sub(r"(?<=://)[^/@:]*:[^/@]*@", "", uri.partition("?")[0])


def _pyarrow_fs() -> Any:
    """Import pyarrow.fs, which takes a while and ships no types."""
    return import_module("pyarrow.fs")


def filesystem_of(uri: str) -> tuple[Any, str]:
    """Return the filesystem, pyarrow's or an installed fsspec implementation, and the path in it that `uri` names."""
    fs = _pyarrow_fs()
    if uri.startswith("abfs") and "background_writes" not in uri:
        uri += f"{'&' if '?' in uri else '?'}background_writes=false"
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        is_described = filesystem.type_name == "s3" and not any(option in uri for option in _UNTOLD)
        return (_in_foreground(filesystem) if is_described else filesystem), path
    except ValueError as unknown:
        if "Unrecognized filesystem type" not in str(unknown):
            raise
        try:
            filesystem, path = import_module("fsspec.core").url_to_fs(uri)
        except ValueError:
            raise unknown from None
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path


def _in_foreground(s3: Any) -> Any:
    """Return the file system as one whose writes wait until they are sent, which no URI can ask for.

    Else a file of any size goes into memory first, and `close` sends it.
    """
    _, (settings,) = s3.__reduce__()
    return type(s3)(**{**settings, "background_writes": False})


@contextmanager
def _storage_errors(location: str, action: str) -> Generator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError) as error:  # pyarrow's are all of these
        raise StorageError(f"{location}: cannot be {action}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the message on one line; of AWS's, without which request it was."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"^When .*?: (?=AWS Error)| \(Request ID: [^)]*\)", "", text)
