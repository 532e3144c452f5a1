"""Teacher scores kept on disk, for texts that come again: later epochs, resumed runs, the trials of a sweep.

An entry's name is the digest of who was asked and what: the teacher's weights, how it answers, and the token ids. So
another teacher never finds it. Each entry is a safetensors file that carries the digest of its content: one that was
damaged is none. Several processes, and machines that share a disk, may use one directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rayqd.errors import StorageError
from rayqd.files import replace_file
from rayqd.types import HiddenPayload, LogitsPayload, Rollout, SampledPayload, TeacherPayload, TopKPayload, WireTensor

_KEPT_AFTER_PRUNING = 0.9  # of the limit, so that not every write looks through the whole directory
_BETWEEN_SCANS = 64  # writes, after which it is seen what other processes wrote


class ScoreCache:
    """Scores by key. What goes wrong with the disk after the start costs only the entry."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Raises StorageError for a directory that cannot be made or written to."""
        self.directory = directory
        self.max_bytes = max_bytes
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

    def get(self, key: str) -> TeacherPayload | None:
        """The entry of this key, which now is the one used last; None if there is none, or none that is whole."""
        path = self._path(key)
        try:
            with safe_open(path, framework="np") as file:
                kinds = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if kinds.pop("digest") != _digest(arrays):
                raise SafetensorError("damaged")
            scores = _scores(kinds, arrays)
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError, AttributeError):
            path.unlink(missing_ok=True)
            return None
        return scores

    def put(self, key: str, scores: TeacherPayload) -> None:
        """Keep `scores`, and forget the least recently used ones that no longer fit."""
        kinds, arrays = _parts(scores)
        path = self._path(key)
        with contextlib.suppress(OSError, SafetensorError):  # a full disk costs only the time to compute them again
            path.parent.mkdir(exist_ok=True)
            with replace_file(path, concurrent=True) as partial:
                save_file(arrays, partial, metadata=kinds | {"digest": _digest(arrays)})
            self._num_bytes += path.stat().st_size
        self._num_writes += 1
        if self._num_bytes > self.max_bytes or self._num_writes % _BETWEEN_SCANS == 0:
            self._prune()

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
        """When each was last used, its bytes, and its file."""
        found: list[tuple[float, int, Path]] = []
        for path in self.directory.glob("??/*.safetensors"):
            with contextlib.suppress(OSError):  # another process may just have removed it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"


def weights_digest(directory: Path) -> str:
    """Of the content of a checkpoint's weights and configuration, wherever they lie and whatever they are called."""
    files = sorted([*directory.glob("*.safetensors"), directory / "config.json"])
    with ThreadPoolExecutor(min(8, len(files))) as threads:
        digests = list(threads.map(_file_digest, files))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def score_key(answers: str, rollout: Rollout) -> str:
    """The name of an entry. `answers` says who is asked, and in which form."""
    key = hashlib.blake2b(answers.encode(), digest_size=20)
    key.update(len(rollout.prompt_ids).to_bytes(8, "little"))
    for ids in (rollout.prompt_ids, rollout.completion_ids):
        key.update(np.ascontiguousarray(ids, dtype="<i4").tobytes())
    return key.hexdigest()


def _parts(scores: TeacherPayload) -> tuple[dict[str, str], dict[str, NDArray[np.generic]]]:
    """What kind of scores, and their arrays."""
    match scores:
        case HiddenPayload(hidden=wire) | LogitsPayload(logits=wire):
            return {"kind": type(scores).__name__, "dtype": wire.dtype}, {"bits": wire.bits}
        case TopKPayload(ids=ids, logprobs=logprobs):
            return {"kind": "TopKPayload"}, {"ids": ids, "logprobs": logprobs}
        case SampledPayload(logprobs=logprobs):
            return {"kind": "SampledPayload"}, {"logprobs": logprobs}


def _scores(kinds: dict[str, str], arrays: dict[str, NDArray[np.generic]]) -> TeacherPayload:
    match kinds["kind"]:
        case "HiddenPayload":
            return HiddenPayload(hidden=WireTensor(dtype=kinds["dtype"], bits=arrays["bits"]))
        case "LogitsPayload":
            return LogitsPayload(logits=WireTensor(dtype=kinds["dtype"], bits=arrays["bits"]))
        case "TopKPayload":
            return TopKPayload(ids=arrays["ids"], logprobs=arrays["logprobs"])  # pyright: ignore[reportArgumentType]
        case "SampledPayload":
            return SampledPayload(logprobs=arrays["logprobs"])  # pyright: ignore[reportArgumentType]
        case other:
            raise ValueError(f"entry of an unknown kind {other}")


def _digest(arrays: dict[str, NDArray[np.generic]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
