"""A process that ends itself where its work stands still, and leaves word of where it stood.

A thread that waits for a GPU's kernel may never come back, and may hold Python's lock meanwhile: nothing written in
Python could look. So it is the interpreter's own watchdog, a thread in C, that writes every thread's stack and exits.
"""

from __future__ import annotations

import faulthandler
import re
import threading
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TextIO

_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_MAX_FRAMES = 3
FIRST_TIMES = 4
_HEADLINE = "Timeout ("  # how the watchdog begins
_LEAST_SHARE = 0.1  # of a core, that a process uses whose host has something to do
_LOOKS = 20  # at the process's CPU time within the seconds after which it counts as standing still


class Watch(Protocol):
    """Watches over a process's work; see `StallWatch`."""

    def working(self, *, is_first: bool = False) -> AbstractContextManager[None]:
        """Watch over the block by beats."""
        ...

    def computing(self) -> AbstractContextManager[None]:
        """Watch over the block by the CPU time of this process."""
        ...

    def beat(self) -> None:
        """Tell that work goes on."""
        ...


class NoWatch:
    """Watches over nothing."""

    def working(self, *, is_first: bool = False) -> AbstractContextManager[None]:
        """Let the block take as long as it likes."""
        return nullcontext()

    def computing(self) -> AbstractContextManager[None]:
        """Let the block take as long as it likes."""
        return nullcontext()

    def beat(self) -> None:
        """Hear of it, and do nothing."""


class StallWatch:
    """Ends this process once no `beat` has come for `seconds` within `working`; time outside of it does not count."""

    def __init__(self, file: Path, seconds: float) -> None:
        """`file`: where the stacks go, for `read_stall` in the process that comes next."""
        self._file = file
        self._seconds = self._allowed = seconds
        self._stream: TextIO | None = None
        self._is_working = False
        self._is_computing = False
        self._lock = threading.Lock()

    @contextmanager
    def working(self, *, is_first: bool = False) -> Generator[None]:
        """Watch over the block; what a process does for the first time may compile, and has four times as long.

        Within `computing` the CPU's time does not count meanwhile: waiting for a GPU uses some.
        """
        self._stream = self._stream or self._file.open("w")  # the watchdog itself could not
        self._is_working = True
        self._allowed = self._seconds * (FIRST_TIMES if is_first else 1)
        self.beat()
        try:
            yield
        finally:
            self._is_working = False
            self._allowed = self._seconds
            with self._lock:
                if self._is_computing:
                    self._wind_up()
                else:
                    faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def computing(self) -> Generator[None]:
        """Watch over a block of the host's own work, which has no beats: a tenth of a core's time counts as one.

        So what computes for hours is no hang, and what waits for something that never comes is.
        """
        self._stream = self._stream or self._file.open("w")
        ended = threading.Event()
        looking = threading.Thread(target=self._look, args=(ended,), name="host's work", daemon=True)
        with self._lock:
            self._is_computing = True
            self._wind_up()
        looking.start()
        try:
            yield
        finally:
            with self._lock:
                self._is_computing = False
                faulthandler.cancel_dump_traceback_later()
            ended.set()

    def _look(self, ended: threading.Event) -> None:
        seen, used = time.monotonic(), time.process_time()
        while not ended.wait(self._seconds / _LOOKS):
            now, used_now = time.monotonic(), time.process_time()
            is_busy = used_now - used >= _LEAST_SHARE * (now - seen)
            seen, used = now, used_now
            with self._lock:
                if is_busy and self._is_computing and not self._is_working:
                    self._wind_up()

    def _wind_up(self) -> None:
        assert self._stream is not None, "whoever begins to watch opens it"
        faulthandler.dump_traceback_later(self._allowed, exit=True, file=self._stream)

    def beat(self) -> None:
        """Tell that work goes on: a token was made."""
        if self._is_working and self._stream is not None:
            self._wind_up()


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
    at_work = max((frames for frames in threads if not _looks_on(frames)), key=_count_own)
    shown = [f"{Path(file).name}:{line} {function}" for file, line, function in at_work[:_MAX_FRAMES]]
    own = next((f"{Path(file).name}:{line} {function}" for file, line, function in at_work if "/rayqd/" in file), "")
    return ", ".join([*shown, *([own] if own and own not in shown else [])]) or "no Python code"


def _looks_on(frames: list[tuple[str, str, str]]) -> bool:
    return any(file == __file__ and function == StallWatch._look.__name__ for file, _, function in frames)


def _count_own(frames: list[tuple[str, str, str]]) -> int:
    return sum("/rayqd/" in file for file, _, _ in frames)
