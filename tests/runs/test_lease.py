"""One driver at a time works at a run that several machines reach, and none waits for one that is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rayqd.errors import RunError
from rayqd.runs.directory import RunDirectory
from rayqd.runs.lease import LEASE, Disk, Lease
from rayqd.runs.storage.watched import WatchedFolder

KILLED = """
import os, sys
from pathlib import Path
from rayqd.runs.lease import Disk, Lease
Lease(Disk(Path(sys.argv[1]))).take(print)
os._exit(9)
"""


def content(directory: Path) -> dict[str, Any]:
    return json.loads((directory / LEASE).read_text())


def write(directory: Path, **changed: Any) -> None:
    (directory / LEASE).write_text(json.dumps(content(directory) | changed))


def test_a_second_driver_is_refused_while_the_first_renews(tmp_path: Path) -> None:
    first, second = Lease(Disk(tmp_path), renew_seconds=0.02), Lease(Disk(tmp_path), expiry_seconds=60)
    told: list[str] = []
    first.take(told.append)
    try:
        assert told == []
        with pytest.raises(RunError, match=r"is in use: this run is going on in process \d+ on .*; stop it there"):
            second.take(told.append)
        assert "waiting 60 s for a sign of life" in told[0]
        first.check()
    finally:
        first.release()


def test_who_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    told: list[str] = []
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False).returncode == 9
    assert not content(tmp_path)["is_over"]
    for _ in range(2):  # after a killed process, and after one that let it go
        lease = Lease(Disk(tmp_path))
        lease.take(told.append)
        lease.release()
        assert content(tmp_path)["is_over"]
    assert told == []


def test_another_machine_that_gives_no_sign_of_life_is_waited_for_and_followed(tmp_path: Path) -> None:
    Lease(Disk(tmp_path)).take(lambda _: None)
    write(tmp_path, machine="another", host="far", id="0" * 32)
    told: list[str] = []
    lease = Lease(Disk(tmp_path), expiry_seconds=0.01)
    lease.take(told.append)
    assert len(told) == 1
    assert " on far: waiting 0.01 s" in told[0]
    assert content(tmp_path)["id"] != "0" * 32
    lease.release()


def test_a_driver_that_stood_still_meanwhile_learns_that_it_lost_the_run(tmp_path: Path) -> None:
    lease = Lease(Disk(tmp_path), renew_seconds=0.02)
    lease.take(lambda _: None)
    write(tmp_path, id="1" * 32, host="far")
    with pytest.raises(RunError, match=r"was taken over by process \d+ on far"):  # noqa: PT012
        for _ in range(3000):
            lease.check()
            time.sleep(0.01)
    lease.release()
    assert content(tmp_path)["id"] == "1" * 32


def test_a_lease_that_is_damaged_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_bytes(b'{"id": \xff')
    lease = Lease(Disk(tmp_path))
    lease.take(lambda _: None)
    lease.release()


def test_a_run_leases_its_directory_and_its_storage(tiny_config: Any, tmp_path: Path) -> None:
    config = tiny_config(storage=str(tmp_path / "store"))
    run_dir = RunDirectory(config)
    places = [config.run_dir, tmp_path / "store" / config.name]
    assert [content(place)["is_over"] for place in places] == [False, False]
    run_dir.check_lease()
    run_dir.mirror.hurry()
    leased = run_dir._leases[1]._place  # pyright: ignore[reportPrivateUsage]
    assert isinstance(leased, WatchedFolder)
    assert leased.patience.seconds == config.ray.stall_seconds  # while the run stops, it is renewed as ever
    run_dir.close()
    assert leased.patience.setting == "a stop"
    assert [content(place)["is_over"] for place in places] == [True, True]
    RunDirectory(config).close()
