"""What a file holds, as a digest: its name, size and time may stay while that changes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rayqd.checksums import digest_file


def identify_file(path: Path) -> str:
    """Return the digest of the content; read once a process, and again where the file was written to since."""
    state = path.stat()
    return _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, *state: int) -> str:
    del state  # a part of the key
    return digest_file(path)
