"""Who works at a run that several machines can reach: one driver at a time, until it ends or is no longer heard of.

A lock of the operating system is enough on one machine. Where the run's directory, or its storage, is shared, each
driver also writes `lease.json` there and renews it. Clocks of two machines need not agree: whoever finds a lease looks
whether it is renewed while he waits, by his own clock. What is written there is compared, and nothing else is done
with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil
from pydantic import TypeAdapter

from rayqd.errors import RunError, StorageError
from rayqd.files import replace_file

LEASE = "lease.json"
RENEW_SECONDS = 10.0
EXPIRY_SECONDS = 30.0  # without a renewal
_POLL_SECONDS = 0.5


class Place(Protocol):
    """A folder that several machines reach."""

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file."""
        ...


class Disk:
    """A directory as a `Place`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __str__(self) -> str:
        return str(self._directory)

    def read(self, name: str) -> bytes | None:
        """Return a file's content; None where there is none."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        """Make or replace a file; StorageError where that cannot be."""
        try:
            with replace_file(self._directory / name, durable=False) as partial:
                partial.write_bytes(content)
        except OSError as error:
            raise StorageError(f"{self._directory / name} cannot be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holder:
    """What a lease says."""

    id: str
    host: str
    machine: str  # its boot: process numbers mean something in it alone
    process: int
    began: float  # when the process did, by that machine's clock
    renewals: int
    is_over: bool = False

    def to_bytes(self) -> bytes:
        return (json.dumps(asdict(self)) + "\n").encode()


class Lease:
    """A lease of one place, which a thread of this process renews until `release`."""

    def __init__(
        self, place: Place, expiry_seconds: float = EXPIRY_SECONDS, renew_seconds: float = RENEW_SECONDS
    ) -> None:
        """Know the place, and touch nothing there yet."""
        self._place = place
        self._expiry_seconds = expiry_seconds
        self._renew_seconds = renew_seconds
        own = psutil.Process()
        self._own = _Holder(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            process=own.pid,
            began=own.create_time(),
            renewals=0,
        )
        self._lost_to = ""
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, on_wait: Callable[[str], None]) -> None:
        """Take it, once whoever has it is gone; raises RunError where he renews it, StorageError."""
        found = self._read()
        if found and not found.is_over and not _is_dead(found):
            who = f"process {found.process} on {found.host}"
            on_wait(f"{self._place} is leased to {who}: waiting {self._expiry_seconds:g} s for a sign of life of it")
            if self._is_renewed(found):
                raise RunError(
                    f"{self._place} is in use: this run is going on in {who}; stop it there, or give this run another "
                    "name"
                )
        self._write()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RunError where another driver has it: it waited for a sign of life while this process stood still."""
        if self._lost_to:
            raise RunError(
                f"{self._place} was taken over by {self._lost_to}, which heard nothing of this process for "
                f"{self._expiry_seconds:g} s: the run goes on there, and ends here"
            )

    def release(self) -> None:
        """Let others have it at once."""
        self._end.set()
        if self._thread:
            self._thread.join(timeout=self._renew_seconds)
            with contextlib.suppress(StorageError):
                found = self._read()
                if found and found.id == self._own.id:
                    self._place.write(LEASE, _changed(self._own, is_over=True).to_bytes())
        self._thread = None

    def _keep(self) -> None:
        while not self._end.wait(self._renew_seconds):
            with contextlib.suppress(StorageError):  # the next time will tell
                found = self._read()
                if found and found.id != self._own.id:
                    self._lost_to = f"process {found.process} on {found.host}"
                    return
                self._write()

    def _is_renewed(self, found: _Holder) -> bool:
        deadline = time.monotonic() + self._expiry_seconds
        while time.monotonic() < deadline:
            now = self._read()
            if now is None or now.is_over:
                return False
            if now != found:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _read(self) -> _Holder | None:
        content = self._place.read(LEASE)
        with contextlib.suppress(ValueError):  # half of one, or another version's
            return None if content is None else _HOLDER.validate_json(content)
        return None

    def _write(self) -> None:
        self._place.write(LEASE, self._own.to_bytes())
        self._own = _changed(self._own, renewals=self._own.renewals + 1)


def _changed(holder: _Holder, **fields: int) -> _Holder:
    return _HOLDER.validate_python({**asdict(holder), **fields})


def _machine() -> str:
    """Return what tells this boot of this machine, or container, from any other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _is_dead(holder: _Holder) -> bool:
    """Return whether it was a process of this machine that is no more; False where nobody here can tell."""
    if holder.machine != _machine():
        return False
    try:
        return abs(psutil.Process(holder.process).create_time() - holder.began) > 1.0
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


_HOLDER = TypeAdapter(_Holder)
