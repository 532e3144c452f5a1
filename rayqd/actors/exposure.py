"""What a Ray of this machine's own shows to others: nothing, where its processes listen on the loopback alone."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path

import psutil

_SWITCH = "ENABLE_RAY_CLUSTER"  # of Ray's, whether a node can be one of several; macOS and Windows have it off
_TOKEN = Path("~/.ray/auth_token")  # where Ray keeps the one that it makes


@contextlib.contextmanager
def listen_on_loopback() -> Generator[None]:
    """Have a Ray that is started in the block take the loopback's address for the node's, and listen there alone.

    `ray.init` replaces that address by another where it is given as an argument, and nothing public says otherwise.
    Where a version of Ray does without the switch, `describe_exposure` tells.
    """
    constants = importlib.import_module("ray._private.ray_constants")
    kept = getattr(constants, _SWITCH, None)
    setattr(constants, _SWITCH, False)
    try:
        yield
    finally:
        setattr(constants, _SWITCH, kept)


def describe_exposure() -> str | None:
    """Return a line for the user where Ray, started by this process, can be reached from elsewhere; else None."""
    ports = sorted(set(_list_open_ports()))
    if not ports:
        return None
    return (
        f"Ray can be reached from other machines at port{'s' if len(ports) > 1 else ''} {', '.join(map(str, ports))}: "
        "who can reach them runs programs as you; close them by a firewall, or set RAY_AUTH_MODE=token"
    )


def protect_token() -> None:
    """Let nobody but its owner read the token file of Ray, which writes it for everybody to read."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _TOKEN).expanduser()
    with contextlib.suppress(OSError):
        found = file.stat()
        if found.st_uid == os.getuid() and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            file.chmod(stat.S_IRUSR | stat.S_IWUSR)


def _list_open_ports() -> Iterator[int]:
    """Yield the ports at which processes that this one started listen on other addresses than the loopback's."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip):
                    yield connection.laddr.port


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
