"""Payloads kept on disk, for texts that come again: later epochs, resumed runs, the trials of a sweep.

An entry's name is the digest of who was asked and what: the teacher's weights and dtype, the payload's spec with all of
its fields, and the token ids. So another teacher or spec never finds it. Each entry is a safetensors file that carries
the digest of its content: one that was damaged is none. Several processes, and machines that share a disk, may use one
directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

from rayqd.errors import StorageError
from rayqd.files import replace_file
from rayqd.types import Rollout, TeacherPayload, WireTensor

if TYPE_CHECKING:
    from rayqd.teacher.payloads import PayloadSpec

_KEPT_AFTER_PRUNING = 0.9  # of the limit, so that not every write looks through the whole directory
_BETWEEN_SCANS = 64  # writes, after which it is seen what other processes wrote

Arrays = dict[str, NDArray[np.generic]]


class _Entry(Protocol):
    """An open safetensors file, which has no types of its own."""

    def metadata(self) -> dict[str, str] | None: ...
    def keys(self) -> list[str]: ...
    def get_tensor(self, name: str) -> NDArray[np.generic]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherIdentity:
    """What a teacher's numbers follow from, beside the text that it reads."""

    weights: str  # `weights_digest` of its checkpoint
    dtype: str  # of its arithmetic
    forward: str = ""  # how its rows share a call, and what its head does, where that is not the plain way


class PayloadCache:
    """The payloads of one teacher. What goes wrong with the disk after the start costs only the entry."""

    def __init__(self, directory: Path, max_bytes: int, teacher: TeacherIdentity) -> None:
        """Raise StorageError for a directory that cannot be made or written to."""
        self.directory = directory
        self.max_bytes = max_bytes
        self._teacher = teacher
        self._num_writes = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as error:
            raise StorageError(
                f"teacher.cache_dir={directory} cannot be written to ({error.strerror}): "
                "choose another, or set teacher.cache_gib to 0"
            ) from error
        self._num_bytes = sum(size for _, size, _ in self._entries())

    def get(self, spec: PayloadSpec, rollout: Rollout) -> TeacherPayload | None:
        """Return the payload, whose entry now is the one used last; None if there is none, or none that is whole."""
        path = self.path(spec, rollout)
        try:
            with cast("AbstractContextManager[_Entry]", safe_open(path, framework="np")) as file:
                metadata = file.metadata() or {}
                arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if metadata.pop("digest") != _digest(arrays):
                raise SafetensorError("damaged")
            payload = _from_arrays(spec.payload_type, arrays, dtypes=metadata)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError):
            path.unlink(missing_ok=True)
            return None
        return payload

    def put(self, spec: PayloadSpec, rollout: Rollout, payload: TeacherPayload) -> None:
        """Keep `payload`, and forget the least recently used ones that no longer fit."""
        arrays, dtypes = _to_arrays(payload)
        path = self.path(spec, rollout)
        with contextlib.suppress(OSError, SafetensorError):  # a full disk costs only the time to compute them again
            path.parent.mkdir(exist_ok=True)
            with replace_file(path, concurrent=True) as partial:
                save_file(arrays, partial, metadata=dtypes | {"digest": _digest(arrays)})
            self._num_bytes += path.stat().st_size
        self._num_writes += 1
        if self._num_bytes > self.max_bytes or self._num_writes % _BETWEEN_SCANS == 0:
            self._prune()

    def path(self, spec: PayloadSpec, rollout: Rollout) -> Path:
        """Return where the payload of `rollout` lies, if it is kept."""
        key = hashlib.blake2b(spec.cache_key(self._teacher).encode(), digest_size=20)
        key.update(len(rollout.prompt_ids).to_bytes(8, "little"))
        for ids in (rollout.prompt_ids, rollout.completion_ids):
            key.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
        name = key.hexdigest()
        return self.directory / name[:2] / f"{name}.safetensors"

    def _prune(self) -> None:
        entries = sorted(self._entries())
        self._num_bytes = sum(size for _, size, _ in entries)
        if self._num_bytes <= self.max_bytes:
            return
        for _, size, path in entries:
            if self._num_bytes <= _KEPT_AFTER_PRUNING * self.max_bytes:
                break
            path.unlink(missing_ok=True)
            self._num_bytes -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Return of each entry when it was last used, its bytes, and its file."""
        entries: list[tuple[float, int, Path]] = []
        for path in self.directory.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may just have removed it
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        return entries


def weights_digest(directory: Path) -> str:
    """Return a digest of a checkpoint's weights and configuration, wherever they lie and whatever they are called."""
    files = sorted([*directory.glob("*.safetensors"), directory / "config.json"])
    with ThreadPoolExecutor(min(8, len(files))) as threads:
        digests = list(threads.map(_file_digest, files))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _to_arrays(payload: TeacherPayload) -> tuple[Arrays, dict[str, str]]:
    """Return the payload's fields as arrays, and the torch dtype of those that are a WireTensor."""
    arrays: Arrays = {}
    dtypes: dict[str, str] = {}
    for name, value in payload.arrays().items():
        if isinstance(value, WireTensor):
            dtypes[name] = value.dtype
            value = value.bits
        arrays[name] = np.ascontiguousarray(value)
    return arrays, dtypes


def _from_arrays(payload_type: type[TeacherPayload], arrays: Arrays, dtypes: dict[str, str]) -> TeacherPayload:
    """Return the payload that `_to_arrays` took apart; raise KeyError for other fields than it has."""
    if arrays.keys() != {field.name for field in fields(payload_type)}:
        raise KeyError(*arrays)
    return payload_type(
        **{
            name: WireTensor(dtype=dtypes[name], bits=array) if name in dtypes else array
            for name, array in arrays.items()
        }
    )


def _digest(arrays: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
