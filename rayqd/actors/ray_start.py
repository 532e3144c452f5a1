"""Starts Ray, or connects to it: again where it was only slow, and otherwise one line that says what to mend."""

# pyright: reportUnknownMemberType=false
# Ray's signatures are partly without types.

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import ray

from rayqd.console.quiet import silence_stderr
from rayqd.errors import ConfigError, PlacementError, RayqdError, StorageError

MAX_ATTEMPTS = 3
_PAUSE_SECONDS = 2.0
_PROBE_SECONDS = 5.0  # for a port to answer
_MAX_SOCKET_PATH = 107  # bytes of a unix socket's name
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_RAYS_PROCESSES = ("gcs_server", "raylet")

# What Ray says when a process of its own did not come up in time, in the words of its node.py and services.py.
_TIMED_OUT = (
    "timed out during startup",
    "Timed out",
    "timed out",
    "Failed to start GCS",
    "Failed to start a dashboard",
    "may not have started successfully",
    "node info is not available",
    "exited unexpectedly",
    "Failed to connect to GCS",
)
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")

T = TypeVar("T")


def start_ray(init: Callable[[], T], address: str | None, notice: Callable[[str], None]) -> T:
    """Return what `init`, a call of `ray.init`, returns; `notice` is told of each attempt that took Ray too long.

    Raises PlacementError, ConfigError or StorageError in one line, and KeyboardInterrupt as it comes.
    """
    if ray.is_initialized():
        raise ConfigError("this process is connected to Ray already: call ray.shutdown() first, or set RAY_ADDRESS")
    if address:
        _check_address(address)
    attempt = 1
    while True:
        before = {process.pid for process in psutil.Process().children()}
        try:
            return init()
        except Exception as error:  # what Ray raises when it gave up waiting has no class of its own
            _end_what_is_left(before)
            if attempt == MAX_ATTEMPTS or not _took_too_long(error, address):
                raise explain_failure(error, address) from error
        attempt += 1
        notice(f"Ray was too slow to start; trying again ({attempt} of {MAX_ATTEMPTS})")
        time.sleep(_PAUSE_SECONDS)


def explain_failure(error: Exception, address: str | None) -> RayqdError:
    """Return the error of ours, with the mend, for what `ray.init` raised."""
    text = f"{error} {error.__cause__ or ''}"
    if "InvalidAuthToken" in text:
        return PlacementError(
            f"no Ray cluster answers at {address}: it wants a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
            "unless it is in ~/.ray/auth_token"
        )
    if "ersion mismatch" in text:
        return ConfigError(_describe_versions(text, address))
    if "Could not find any running Ray instance" in text:
        return PlacementError(
            "no Ray runs on this machine: start one (`ray start --head`), name the cluster as host:6379, or leave "
            f"{'RAY_ADDRESS' if os.environ.get('RAY_ADDRESS') else 'ray.address'} out to have one for this run alone"
        )
    if address:
        return PlacementError(f"no Ray cluster answers at {address}: {_first_line(error)}{_unset_hint()}")
    return _explain_local(error, text)


def _explain_local(error: Exception, text: str) -> RayqdError:
    variable, directory = _temporary_directory()
    if "AF_UNIX path length" in text:
        socket_name = text.rpartition(": ")[2].strip()
        return ConfigError(
            f"{variable}={directory} is too deep for Ray: the names of its sockets would have "
            f"{len(socket_name.encode())} bytes, and Linux takes {_MAX_SOCKET_PATH}; set RAY_TMPDIR=/tmp"
        )
    if "/dev/shm" in text:
        return StorageError(
            "/dev/shm is too small for Ray's object store: in a container give --shm-size=4g or more, remove what "
            "others left there, or set RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE=1"
        )
    if "ddress already in use" in text or "Failed to bind" in text or "is already occupied" in text:
        return PlacementError(
            "a port that Ray was told to take is taken: unset RAY_GCS_SERVER_PORT, or end the Ray that has it "
            "(`ray stop`)"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return StorageError(
            f"Ray cannot work in {directory} ({error.strerror}): set RAY_TMPDIR to a directory with room that this "
            "user can write"
        )
    if _took_too_long(error, None):
        return PlacementError(
            f"Ray did not start in {MAX_ATTEMPTS} attempts ({_first_line(error)}): this machine may be too busy or "
            f"out of memory; run the same command again when it is not, and see {directory}/ray/session_latest/logs"
        )
    return PlacementError(f"Ray does not start: {type(error).__name__}: {_first_line(error)}{_place(error)}")


def _took_too_long(error: Exception, address: str | None) -> bool:
    """Return whether another attempt may go better: Ray was started here, and a process of it was late."""
    text = str(error)
    if address or "already in use" in text or "/dev/shm" in text:
        return False
    return isinstance(error, TimeoutError) or any(words in text for words in _TIMED_OUT)


def _check_address(address: str) -> None:
    """Raise what is wrong with an address before Ray tries it for minutes."""
    scheme = _SCHEME.match(address)
    if scheme and scheme[1] != "ray":
        raise ConfigError(
            f"{_name_of(address)} has the scheme {scheme[1]}://, which Ray has not: write host:6379, "
            "ray://host:10001 or auto"
        )
    if address in ("auto", "local"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{_name_of(address)} has no port: write host:6379 or ray://host:10001")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise PlacementError(f"no Ray cluster answers at {address}: {reason}{_unset_hint()}") from error


def _name_of(address: str) -> str:
    return f"{'RAY_ADDRESS' if os.environ.get('RAY_ADDRESS') == address else 'ray.address'}={address}"


def _unset_hint() -> str:
    left_over = "RAY_ADDRESS may be left over from another cluster: unset it to start Ray here"
    return f"; {left_over}" if os.environ.get("RAY_ADDRESS") else "; is it running, and the port open from here?"


def _describe_versions(text: str, address: str | None) -> str:
    versions = _VERSIONS.findall(text)
    if len(versions) != 2:
        return f"the cluster at {address} has other versions: {' '.join(text.split())}"
    (ray_there, python_there), (ray_here, python_here) = versions
    return (
        f"the cluster at {address} runs Ray {ray_there} on Python {python_there}, and this is Ray {ray_here} on Python "
        f'{python_here}: install the cluster\'s here (pip install "ray=={ray_there}"), or this on the cluster'
    )


def _temporary_directory() -> tuple[str, str]:
    """Return where Ray puts its files, and the variable that says so, as Ray itself looks for it."""
    found = ((name, value) for name in ("RAY_TMPDIR", "TMPDIR") if (value := os.environ.get(name)))
    return next(found, ("RAY_TMPDIR", tempfile.gettempdir()))


def _end_what_is_left(before: set[int]) -> None:
    """End the processes of an attempt that failed, of which Ray forgets those that did start."""
    with silence_stderr(), contextlib.suppress(Exception):
        ray.shutdown()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid not in before and process.name() in _RAYS_PROCESSES:
                process.kill()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _place(error: Exception) -> str:
    """Name the line of Ray's code where something that nobody foresaw was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
