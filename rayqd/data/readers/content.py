"""A file's bytes by their place, read when they are asked for: pages of a map would count as this process's."""

from __future__ import annotations

import os
import weakref
from pathlib import Path


class Content:
    """An open file, closed with the last who can ask for its bytes."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises OSError."""
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` on, before `end`."""
        return os.pread(self._handle, end - start, start)
