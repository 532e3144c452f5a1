"""A folder under a URI whose calls end: in a process of their own, which is ended where it gets nowhere.

Network disks and buckets may neither answer nor fail. Who waits for one in a system call hears no signal; who waits
here does, and gives up once nothing has moved for `Patience.seconds`.
"""

from __future__ import annotations

import json
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayqd.child_process import ChildProcess
from rayqd.errors import DamagedStorageError, StorageError
from rayqd.runs.storage.folder import Folder, redact

_POLL_SECONDS = 0.2
LOOK_SECONDS = 60.0  # of patience of a command that only looks at a storage
STOP_SECONDS = 3.0  # of patience once the run is to stop: all must be over within 10 s of the signal
_AGAIN_SECONDS = 0.5
_START_SECONDS = 30.0  # of the process that does the calls, on cores that others keep busy


class HangingStorageError(StorageError):
    """The storage neither answered nor failed."""


@dataclass
class Patience:
    """How long a call may get nowhere; who stops a run has less of it, also for calls that are under way."""

    seconds: float
    setting: str = "ray.stall_seconds"

    def end(self) -> None:
        """Have no more than a stop leaves."""
        self.seconds, self.setting = min(self.seconds, STOP_SECONDS), "a stop"

    def give_up(self) -> None:
        """Take note that a call got nowhere: in a stop nobody waits as long for another one."""
        if self.setting == "a stop":
            self.seconds = min(self.seconds, _AGAIN_SECONDS)


class WatchedFolder(Folder):
    """What `Folder` is, with every call in another process. Calls from several threads do not wait for each other."""

    def __init__(self, uri: str, patience: Patience, inside: tuple[str, ...] = ()) -> None:
        """Know the folder `inside` `uri`; nothing is opened before the first call."""
        self._whole_uri = uri
        self._uri = "/".join([redact(uri).rstrip("/"), *inside])
        self._inside = inside
        self.patience = patience

    def inside(self, name: str) -> WatchedFolder:
        """Return the folder `name` in this one."""
        return WatchedFolder(self._whole_uri, self.patience, (*self._inside, name))

    def check_rights(self) -> None:
        """Write a file, list it, and remove it."""
        self._call("check_rights", "used as storage")

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None where there is none."""
        return self._call("read", "read", name)

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file; nobody sees half of it."""
        self._call("write", "written", name, content=content)

    def write_file(self, name: str, file: Path) -> None:
        """Make or replace a file by what `file` has now; nobody sees half of it."""
        self._call("write_file", "written", name, file)

    def directories(self) -> list[str]:
        """Return the names of the directories here that are whole."""
        return self._call("directories", "listed")

    def put(self, directory: Path, name: str) -> None:
        """Upload `directory` as `name`, in place of what is there."""
        self._call("put", "written", name, directory)

    def get(self, name: str, directory: Path) -> None:
        """Download `name` as `directory`, which is whole or absent too; DamagedStorageError where it is not as put."""
        self._call("get", f"downloaded to {directory}", name, directory)

    def disown(self, name: str) -> None:
        """Have a directory count as absent from now on; see `Folder.disown`."""
        self._call("disown", "put aside", name)

    def remove(self, name: str) -> None:
        """Remove a directory, whole or not; nothing happens where there is none."""
        self._call("remove", "removed", name)

    def _call(
        self, method: str, action: str, name: str = "", path: Path | None = None, content: bytes | None = None
    ) -> Any:
        call = {
            "uri": self._whole_uri,
            "inside": self._inside,
            "method": method,
            "name": name,
            "path": str(path.absolute()) if path else "",
            "has_content": content is not None,
        }
        where = f"{self}/{name}" if name else str(self)
        process = _IDLE.take()
        try:
            answer = process.call(call, content, self.patience)
        except BaseException as error:  # Ctrl-C too: what it does now is of no use to anybody
            said = process.end()
            if isinstance(error, _HangError):
                self.patience.give_up()
                raise HangingStorageError(f"{where}: cannot be {action}: {error}") from None
            if isinstance(error, EOFError | OSError):
                raise StorageError(f"{where}: cannot be {action}: the process that does it ended{said}") from error
            raise
        _IDLE.give_back(process)
        if "error" in answer:
            raise (DamagedStorageError if answer["is_damage"] else StorageError)(answer["error"])
        return answer.get("content", answer.get("value"))


class _HangError(Exception):
    """Nothing came for as long as patience lasted."""


class _Process:
    """The process that does the calls, seen from here; one at a time."""

    _is_ready = False

    def __init__(self) -> None:
        self._child = ChildProcess("rayqd.runs.storage.process")

    @property
    def is_there(self) -> bool:
        return self._child.is_there

    def call(self, call: dict[str, Any], content: bytes | None, patience: Patience) -> dict[str, Any]:
        """Return the answer; raises _HangError, and EOFError or OSError where the process is gone."""
        if not self._is_ready:
            self._receive(patience, _START_SECONDS if patience.seconds > _AGAIN_SECONDS else STOP_SECONDS)
            self._is_ready = True
        self._child.connection.send_bytes(json.dumps(call).encode())
        if content is not None:
            self._child.connection.send_bytes(content)
        while True:
            answer: dict[str, Any] = json.loads(self._receive(patience))
            if "progress" not in answer:
                break
        if "has_content" in answer:
            answer["content"] = self._receive(patience)
        return answer

    def _receive(self, patience: Patience, at_least: float = 0.0) -> bytes:
        began = time.monotonic()
        while not self._child.connection.poll(_POLL_SECONDS):
            if time.monotonic() - began >= max(at_least, patience.seconds):
                raise _HangError(f"nothing moved for the {patience.seconds:g} s of {patience.setting}")
        return self._child.connection.recv_bytes()

    def end(self) -> str:
        """End it, and return its last words, if any.

        Nobody waits: in a system call of a disk that hangs not even this ends it.
        """
        self.kill()
        threading.Thread(target=self._child.wait, name="storage", daemon=True).start()
        last = self._child.last_words()
        self._child.close()
        return f" ({last})" if last else ""

    def kill(self) -> None:
        """End it, also where this process ends, which starts no thread any more."""
        self._child.kill()
        self._child.connection.close()


class _Idle:
    """The processes that have nothing to do; they end with this one."""

    def __init__(self) -> None:
        self._processes: list[_Process] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end_all, self._processes)  # at this process's end

    def take(self) -> _Process:
        with self._lock:
            while self._processes:
                process = self._processes.pop()
                if process.is_there:
                    return process
                process.end()
        return _Process()

    def give_back(self, process: _Process) -> None:
        with self._lock:
            self._processes.append(process)


def _end_all(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()


_IDLE = _Idle()
