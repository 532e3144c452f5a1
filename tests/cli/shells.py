"""A bash, a zsh or a fish in which completion is tried as a user tries it: by pressing Tab."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

_ANSWER = re.compile(rb"ANSWER(.*?)END")
_INSERT_ALL = b"\x1b*"  # readline's insert-completions: puts every completion on the line


class Terminal:
    """A shell behind a pseudo-terminal, in which `rayqd` prints its arguments."""

    def __init__(self, argv: list[str], directory: Path, setup: str, **environment: str) -> None:
        self._pty, tty = pty.openpty()
        plain = {"PATH": os.environ["PATH"], "HOME": str(directory), "TERM": "dumb", "PS1": "$ ", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            argv, stdin=tty, stdout=tty, stderr=tty, cwd=directory, env=plain | environment, start_new_session=True
        )
        os.close(tty)
        self._seen = b""
        self.type(setup.encode() + b"\nprintf 'ANS''WER%sEND\\n' ready\n")
        self._answer()

    def type(self, keys: bytes) -> None:
        os.write(self._pty, keys)

    def arguments(self, keys: bytes) -> list[str]:
        """What `rayqd` is called with after `keys` and Enter."""
        self.type(keys + b"\n")
        return self._answer().split("|")[:-1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._pty)

    def _answer(self, timeout_seconds: float = 20.0) -> str:
        deadline = time.monotonic() + timeout_seconds
        while not (found := _ANSWER.search(self._seen)):
            ready, _, _ = select.select([self._pty], [], [], 0.1)
            if ready:
                self._seen += os.read(self._pty, 65536)
            assert time.monotonic() < deadline, self._seen.decode(errors="replace")
        self._seen = self._seen[found.end() :]
        return found[1].decode()
