"""Checksums of what is written to be read back, by another process or years later: a changed byte is found, and named.

A directory has `checksums.json` with its files' sizes and digests; a JSON object and a line of JSON Lines carry their
own under the key CHECKSUM. They find what disks and copies do to bytes. They are no signature: whoever may write there
may write them too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import cast

import xxhash
from pydantic import JsonValue

from rayqd.files import flush_to_disk

CHECKSUM = "checksum"  # the last key of an object
CHECKSUMS = "checksums.json"  # of a directory

_CHUNK_BYTES = 1 << 22


class DamagedError(ValueError):
    """Bytes are not those that were written. Its message says what differs, without the place."""


def _is_not_renamed(name: str, files: Collection[str]) -> None:
    return None


def digest(content: bytes) -> str:
    """Return the 128 bits of XXH3 in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(content)


def ignore_progress() -> None:
    """Be called for every piece that was read, and do nothing."""


def digest_file(file: Path, on_progress: Callable[[], None] = ignore_progress) -> str:
    """Return the same of a file's content, read piece by piece; `on_progress` is called after each."""
    hasher = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            hasher.update(piece)
            on_progress()
    return hasher.hexdigest()


def seal(
    directory: Path, *, file_name: str = CHECKSUMS, suffixes: tuple[str, ...] = ("",), durable: bool = True
) -> None:
    """Write `checksums.json` of all files under `directory`, or of those whose names end with one of `suffixes`.

    They then are on the disk, not in its cache alone, unless not `durable`.
    """
    files = {name: file for name, file in _files(directory).items() if name != file_name and name.endswith(suffixes)}
    described: dict[str, JsonValue] = {
        name: {"bytes": file.stat().st_size, "xxh3_128": digest_file(file)} for name, file in sorted(files.items())
    }
    (directory / file_name).write_text(to_checked_json({"files": described}), encoding="utf-8")
    if durable:
        for file in (*files.values(), directory / file_name):
            flush_to_disk(file)


def find_damage(
    directory: Path,
    *,
    file_name: str = CHECKSUMS,
    is_renamed: Callable[[str, Collection[str]], str | None] = _is_not_renamed,
) -> str | None:
    """Say in a few words what in `directory` is not as `seal` left it; None where all is.

    `is_renamed` returns under which of the names that there are a file lies that is not under its own.
    """
    try:
        listed = from_checked_json((directory / file_name).read_bytes(), may_lack=False)["files"]
    except FileNotFoundError:
        return f"{file_name} is missing"
    except (OSError, DamagedError, KeyError) as error:
        return f"{file_name} {_reason(error)}"
    files = _files(directory)
    for listed_name, expected in cast("dict[str, dict[str, JsonValue]]", listed).items():
        name = listed_name if listed_name in files else is_renamed(listed_name, files.keys())
        if name is None:
            return f"{listed_name} is missing"
        try:
            if (size := files[name].stat().st_size) != expected["bytes"]:
                return f"{name} has {size} bytes of {expected['bytes']}"
            if digest_file(files[name]) != expected["xxh3_128"]:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} {_reason(error)}"
    return None


def to_checked_json(content: Mapping[str, object]) -> str:
    """Return the object as indented JSON that carries its checksum, with a newline behind it."""
    return json.dumps({**content, CHECKSUM: _digest_of(content)}, indent=2) + "\n"


def to_checked_line(content: Mapping[str, object]) -> str:
    """Return the same as one line of JSON Lines."""
    return json.dumps({**content, CHECKSUM: _digest_of(content)}) + "\n"


def from_checked_json(text: bytes, *, may_lack: bool = True) -> dict[str, JsonValue]:
    """Return the object without its checksum. Raises DamagedError where it is no object, or another than was written.

    `may_lack`: an object that never had a checksum, as earlier versions wrote them, is taken as it is.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DamagedError("is no JSON") from error
    if not isinstance(content, dict):
        raise DamagedError("is no JSON object")
    content = cast("dict[str, JsonValue]", content)
    checksum = content.pop(CHECKSUM, None)
    if checksum != _digest_of(content) and not (checksum is None and may_lack):
        raise DamagedError("is not what was written")
    return content


def _digest_of(content: Mapping[str, object]) -> str:
    """Return the digest of an object whatever its layout: 64 bits, for a row of metrics is short itself."""
    return xxhash.xxh3_64_hexdigest(json.dumps(content, separators=(",", ":")).encode())


def _files(directory: Path) -> dict[str, Path]:
    return {file.relative_to(directory).as_posix(): file for file in directory.rglob("*") if file.is_file()}


def _reason(error: Exception) -> str:
    return f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
