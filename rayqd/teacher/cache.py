"""Payloads kept on disk, for texts that come again: later epochs, resumed runs, the trials of a sweep.

An entry's name is the digest of who was asked and what: the teacher's weights and dtype, the payload's spec with all of
its fields, and the token ids. So another teacher or spec never finds it. An entry is a safetensors file behind a digest
of its bytes, and is read only where they agree: one that was damaged is none. Several processes, and machines that
share a disk, may use one directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save  # pyright: ignore[reportUnknownVariableType]

from rayqd.errors import StorageError
from rayqd.files import replace_file
from rayqd.types import Rollout, TeacherPayload, WireTensor

if TYPE_CHECKING:
    from rayqd.teacher.payloads import PayloadSpec

_KEPT_AFTER_PRUNING = 0.9  # of the limit, so that not every write looks through the whole directory
_BETWEEN_SCANS = 64  # writes, after which it is seen what other processes wrote

_SUFFIX, _FORMER_SUFFIX = ".payload", ".safetensors"  # those of earlier versions are only pruned

Arrays = dict[str, NDArray[np.generic]]


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
            payload = _from_arrays(spec.payload_type, load(_unsealed(path.read_bytes())))
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError):
            path.unlink(missing_ok=True)
            return None
        return payload

    def put(self, spec: PayloadSpec, rollout: Rollout, payload: TeacherPayload) -> None:
        """Keep `payload`, and forget the least recently used ones that no longer fit."""
        path = self.path(spec, rollout)
        with contextlib.suppress(OSError):  # a full disk costs only the time to compute them again
            path.parent.mkdir(exist_ok=True)
            with replace_file(path, concurrent=True, durable=False) as partial:
                partial.write_bytes(_sealed(save(_to_arrays(payload))))
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
        if rollout.trained is not None:
            key.update(np.packbits(rollout.trained).tobytes())
        name = key.hexdigest()
        return self.directory / name[:2] / f"{name}{_SUFFIX}"

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
        for path in self.directory.glob("??/*"):
            if path.suffix not in (_SUFFIX, _FORMER_SUFFIX):
                continue
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


def _to_arrays(payload: TeacherPayload) -> Arrays:
    """Return the payload's fields as arrays; the name of one that is a WireTensor ends with its torch dtype."""
    arrays: Arrays = {}
    for name, value in payload.arrays().items():
        if isinstance(value, WireTensor):
            arrays[f"{name}:{value.dtype}"] = np.ascontiguousarray(value.bits)
        else:
            arrays[name] = np.ascontiguousarray(value)
    return arrays


def _from_arrays(payload_type: type[TeacherPayload], arrays: Arrays) -> TeacherPayload:
    """Return the payload that `_to_arrays` took apart; raise KeyError for other fields than it has."""
    values: dict[str, NDArray[np.generic] | WireTensor] = {}
    for key, array in arrays.items():
        name, _, dtype = key.partition(":")
        values[name] = WireTensor(dtype=dtype, bits=array) if dtype else array
    if values.keys() != {field.name for field in fields(payload_type)}:
        raise KeyError(*values)
    return payload_type(**values)


def _sealed(content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(content) + content


def _unsealed(content: bytes) -> bytes:
    """Return what `_sealed` was given. Raises ValueError where a byte of it is another."""
    size = xxhash.xxh3_128().digest_size
    if xxhash.xxh3_128_digest(content[size:]) != content[:size]:
        raise ValueError("damaged")
    return content[size:]


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
