"""A Ray of this machine's own is reachable from this machine alone, and its token is its owner's."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rayqd.actors import exposure
from rayqd.actors.connection import connect
from rayqd.actors.exposure import describe_exposure, protect_token
from rayqd.config import Config

LISTEN = """
import socket, sys, time
listening = socket.socket()
listening.bind((sys.argv[1], 0))
listening.listen()
print(listening.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_every_port_of_a_local_ray_is_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told: list[str] = []
    with connect(Config(), told.append):
        listening = [
            connection.laddr.ip
            for process in psutil.Process().children(recursive=True)
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert len(listening) >= 3  # the GCS, the raylet and its object manager
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert told == []


@pytest.mark.parametrize(("address", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_a_port_that_others_can_reach_is_told(address: str, is_open: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", LISTEN, address], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        port = child.stdout.readline().strip()
        told = describe_exposure() or ""
        child.kill()
    assert (f" {port}" in told) == is_open
    assert not is_open or told.startswith("Ray can be reached from other machines at port")


def test_addresses_are_the_loopbacks_in_every_spelling() -> None:
    loopback = ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"]
    others = ["0.0.0.0", "::", "10.0.0.7", "::ffff:10.0.0.7", "fe80::1%eth0"]
    assert [address for address in loopback + others if exposure._is_loopback(address)] == loopback
    assert socket.inet_aton(loopback[0])[0] == 127


def test_a_token_that_others_can_read_becomes_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "auth_token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    protect_token()  # of none
    file.write_text("canary")
    file.chmod(0o644)
    protect_token()
    assert (file.stat().st_mode & 0o777, file.read_text()) == (0o600, "canary")
