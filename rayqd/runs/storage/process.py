"""The other end of `watched`: what runs in the process that alone touches the storage.

A call of a network disk that hangs cannot be given up by who made it, only ended with its process.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rayqd.errors import DamagedStorageError, StorageError
from rayqd.runs.storage.folder import Folder
from rayqd.runs.storage.transfer import watch_traffic

_LOOK_SECONDS = 1.0
_TELL_SECONDS = 0.2


def serve(handle: int) -> None:
    """Do one call after the other that come through the pipe `handle`, and tell of progress meanwhile.

    Begins with a word that it is ready. A call is a line of JSON, and the bytes behind it where it has some; so is an
    answer. Signals are for who started this process, which ends with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _end_with(os.getppid())
    folders: dict[str, Folder] = {}
    with Connection(handle) as connection:
        import_module("pyarrow.fs")
        _send(connection, progress=True)
        try:
            while True:
                call = json.loads(connection.recv_bytes())
                content = connection.recv_bytes() if call["has_content"] else None
                _answer(connection, lambda: _do(folders, call, content, connection))  # noqa: B023
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _answer(connection: Connection, do: Callable[[], object]) -> None:
    try:
        value = do()
    except StorageError as error:
        _send(connection, error=str(error), is_damage=isinstance(error, DamagedStorageError))
        return
    if isinstance(value, bytes):
        _send(connection, has_content=True)
        connection.send_bytes(value)
    else:
        _send(connection, value=value)


def _do(folders: dict[str, Folder], call: dict[str, Any], content: bytes | None, connection: Connection) -> object:
    key = json.dumps([call["uri"], call["inside"]])
    if key not in folders:
        folder = Folder.open(call["uri"])
        for name in call["inside"]:
            folder = folder.inside(name)
        folders[key] = folder
    folder = folders[key]
    folder.on_progress = _Teller(connection)
    with watch_traffic(folder.on_progress):
        return _call(folder, call, content)


def _call(folder: Folder, call: dict[str, Any], content: bytes | None) -> object:
    name, path = call["name"], Path(call["path"])
    match call["method"]:
        case "check_rights":
            folder.check_rights()
        case "read":
            return folder.read(name)
        case "write":
            folder.write(name, content or b"")
        case "write_file":
            folder.write_file(name, path)
        case "directories":
            return folder.directories()
        case "put":
            folder.put(path, name)
        case "get":
            folder.get(name, path)
        case "disown":
            folder.disown(name)
        case "remove":
            folder.remove(name)
        case other:
            raise AssertionError(other)
    return None


class _Teller:
    """Tells of progress, now and then; from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            if time.monotonic() - self._told > _TELL_SECONDS:
                self._told = time.monotonic()
                _send(self._connection, progress=True)


def _send(connection: Connection, **fields: object) -> None:
    connection.send_bytes(json.dumps(fields).encode())


def _end_with(parent: int) -> None:
    """End this process once `parent` is gone, also in the middle of a call that hangs."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="parent", daemon=True).start()
