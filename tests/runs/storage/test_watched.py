"""A storage that neither answers nor fails is given up, and tried again; real ones: a named pipe, a silent server."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayqd.errors import StorageError
from rayqd.runs.storage.watched import HangingStorageError, Patience, WatchedFolder

SECONDS = 1.5


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URI of a bucket whose server takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield f"s3://key:secret@bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


def test_a_file_system_that_hangs_is_given_up_and_tried_again(tmp_path: Path) -> None:
    folder = WatchedFolder(f"file://{tmp_path}/store", Patience(SECONDS)).inside("mine")
    folder.write("other.toml", b"as ever")
    pipe = tmp_path / "store" / "mine" / "config.toml.partial"
    os.mkfifo(pipe)  # who opens it to write waits for a reader
    with pytest.raises(
        HangingStorageError,
        match=rf"^file://{tmp_path}/store/mine/config.toml: cannot be written: nothing moved for the 1.5 s of "
        r"ray.stall_seconds$",
    ):
        folder.write("config.toml", b"never")
    assert folder.read("other.toml") == b"as ever"
    pipe.unlink()
    folder.write("config.toml", b"again")
    assert folder.read("config.toml") == b"again"


def test_a_server_that_never_answers_is_given_up(silent_server: str) -> None:
    folder = WatchedFolder(silent_server, Patience(SECONDS))
    with pytest.raises(HangingStorageError, match=r"^s3://bucket/runs: cannot be listed: nothing moved "):
        folder.directories()


def test_a_stop_has_little_patience_and_less_once_nothing_moved(silent_server: str) -> None:
    folder = WatchedFolder(silent_server, patience := Patience(10_000.0))
    patience.end()
    for seconds in ("3", "0.5"):
        with pytest.raises(HangingStorageError, match=rf"nothing moved for the {seconds} s of a stop$"):
            folder.read("config.toml")


def test_ctrl_c_is_heard_while_the_storage_hangs(tmp_path: Path) -> None:
    class Interrupting(Patience):
        def __getattribute__(self, name: str) -> object:
            if name == "seconds":  # somebody looks whether it is over
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getattribute__(name)

    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "config.toml.partial")
    folder = WatchedFolder(f"file://{tmp_path}/store", Interrupting(10_000.0))
    with pytest.raises(KeyboardInterrupt):
        folder.write("config.toml", b"never")


def end_processes() -> None:
    for process in psutil.Process().children():
        if "rayqd.runs.storage.process" in " ".join(process.cmdline()):
            process.kill()
            process.wait()


def test_a_process_that_ends_is_one_line_and_another_takes_its_place(tmp_path: Path) -> None:
    ended: list[bool] = []

    class Ending(Patience):
        def __getattribute__(self, name: str) -> object:
            if name == "seconds" and not ended:
                ended.append(True)
                end_processes()
            return super().__getattribute__(name)

    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "config.toml.partial")
    folder = WatchedFolder(f"file://{tmp_path}/store", Ending(10_000.0))
    with pytest.raises(StorageError, match=r"/config.toml: cannot be written: the process that does it ended$"):
        folder.write("config.toml", b"never")
    folder.write("other.toml", b"as ever")
    end_processes()
    assert folder.read("other.toml") == b"as ever"
