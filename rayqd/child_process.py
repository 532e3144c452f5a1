"""A plain interpreter at the other end of a pipe. It ends with who started it, however that ends.

Not `multiprocessing`'s, which would run the user's own script once more in every process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import Pipe
from typing import IO


class ChildProcess:
    """A process that runs `serve` of one of rayqd's modules, seen from here."""

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        """Start it; `module.serve` gets the file descriptor of its end of `connection`, and reads until that closes."""
        self.connection, theirs = Pipe()
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        main = f"import sys; from {module} import serve; serve(int(sys.argv[1]))"
        path = os.pathsep.join(filter(None, sys.path))
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", main, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def is_there(self) -> bool:
        """Whether it has not ended, as one does that the system takes its memory from."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it; nobody waits until it has."""
        self._process.kill()

    def wait(self) -> int:
        """Return its exit code, minus the signal where one killed it, once it has ended."""
        return self._process.wait()

    def last_words(self) -> str:
        """Return the last line that it wrote; empty where it wrote none."""
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        """Let go of the pipe and of what it wrote."""
        self.connection.close()
        self._said.close()
