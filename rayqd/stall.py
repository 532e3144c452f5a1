"""A process that ends itself where its work stands still, and leaves word of where it stood.

A thread that waits for a GPU's kernel may never come back, and may hold Python's lock meanwhile: nothing written in
Python could look. So it is the interpreter's own watchdog, a thread in C, that writes every thread's stack and exits.
"""

from __future__ import annotations

import faulthandler
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_MAX_FRAMES = 3
FIRST_TIMES = 4
_HEADLINE = "Timeout ("  # how the watchdog begins


class StallWatch:
    """Ends this process once no `beat` has come for `seconds` within `working`; time outside of it does not count."""

    def __init__(self, file: Path, seconds: float) -> None:
        """`file`: where the stacks go, for `read_stall` in the process that comes next."""
        self._file = file
        self._seconds = self._allowed = seconds
        self._stream: TextIO | None = None
        self._is_working = False

    @contextmanager
    def working(self, *, is_first: bool = False) -> Generator[None]:
        """Watch over the block; what a process does for the first time may compile, and has four times as long."""
        self._stream = self._stream or self._file.open("w")  # the watchdog itself could not
        self._is_working = True
        self._allowed = self._seconds * (FIRST_TIMES if is_first else 1)
        self.beat()
        try:
            yield
        finally:
            self._is_working = False
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Tell that work goes on: a token was made."""
        if self._is_working and self._stream is not None:
            faulthandler.dump_traceback_later(self._allowed, exit=True, file=self._stream)


def read_stall(file: Path) -> str:
    """Return where the process before this one stood when it was ended for standing still; empty if it was not.

    The newest frames of the thread that was at work, newest first: `vllm.py:210 step, worker.py:80 write`.
    """
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return ""
    if _HEADLINE not in text:
        return ""
    threads: list[list[tuple[str, str, str]]] = [_FRAME.findall(part) for part in text.split("\n\n")]
    at_work = max(threads, key=_count_own)
    shown = [f"{Path(file).name}:{line} {function}" for file, line, function in at_work[:_MAX_FRAMES]]
    own = next((f"{Path(file).name}:{line} {function}" for file, line, function in at_work if "/rayqd/" in file), "")
    return ", ".join([*shown, *([own] if own and own not in shown else [])]) or "no Python code"


def _count_own(frames: list[tuple[str, str, str]]) -> int:
    return sum("/rayqd/" in file for file, _, _ in frames)
