"""A storage that neither answers nor fails is given up, and tried again; real ones: a named pipe, a silent server."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayqd.config import Config
from rayqd.doctor.parts import check_storage
from rayqd.errors import StorageError
from rayqd.runs.storage.fetch import fetch_run
from rayqd.runs.storage.watched import HangingStorageError, Patience, WatchedFolder, _end_all, _Process  # pyright: ignore[reportPrivateUsage]

SECONDS = 1.5
FILE_BYTES = 3 << 20
# A file system that keeps what is written and sends it in `close`, as those of buckets may; fsspec finds it by its
# package's entry point, in the process that does the calls too.
CLOSING = f"""
import os, socket
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

class ClosingFile(MemoryFile):
    def close(self):
        if self.getbuffer().nbytes == {FILE_BYTES}:
            with socket.create_connection(("127.0.0.1", int(os.environ["CLOSING_PORT"]))) as connection:
                connection.sendall(self.getvalue())
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)

class ClosingFileSystem(MemoryFileSystem):
    protocol = "closing"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("closing://"))

    def _open(self, path, mode="rb", **options):
        if mode != "wb":
            return super()._open(path, mode, **options)
        file = ClosingFile(self, path)
        file.commit()
        return file
"""


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URI of a bucket whose server takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        yield f"s3://key:secret@bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"


@pytest.fixture
def slow_server() -> Iterator[tuple[int, threading.Event, list[int]]]:
    """Its port, by what it is set to read on, and the bytes that it has read, 256 KiB in 0.3 s."""
    goes_on, is_over, read = threading.Event(), threading.Event(), [0]

    def serve() -> None:
        try:
            connection = server.accept()[0]
        except OSError:  # nobody came
            return
        with connection:
            while goes_on.is_set() and (block := connection.recv(256 << 10, socket.MSG_WAITALL)):
                read[0] += len(block)
                is_over.wait(0.3)
            if goes_on.is_set():
                connection.sendall(b".")
            is_over.wait(60.0)

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], goes_on, read
        is_over.set()
        server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        thread.join()


@pytest.fixture
def closing_folder(
    tmp_path: Path, slow_server: tuple[int, threading.Event, list[int]], monkeypatch: pytest.MonkeyPatch
) -> WatchedFolder:
    """A folder of the file system that sends in `close`, to the slow server."""
    package = tmp_path / "packages"
    (package / "closing-1.dist-info").mkdir(parents=True)
    (package / "closing-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: closing\nVersion: 1\n")
    (package / "closing-1.dist-info" / "entry_points.txt").write_text(
        "[fsspec.specs]\nclosing = closing_file_system.ClosingFileSystem\n"
    )
    (package / "closing_file_system.py").write_text(CLOSING)
    monkeypatch.syspath_prepend(package)
    monkeypatch.setenv("CLOSING_PORT", str(slow_server[0]))
    end_processes()  # those of other tests know neither
    checkpoint = tmp_path / "step-000001"
    checkpoint.mkdir()
    (checkpoint / "student.safetensors").write_bytes(bytes(FILE_BYTES))
    return WatchedFolder("closing://bucket/runs", Patience(SECONDS))


def test_a_file_that_is_sent_when_it_is_closed_has_all_the_time_it_moves(
    closing_folder: WatchedFolder, tmp_path: Path, slow_server: tuple[int, threading.Event, list[int]]
) -> None:
    _, goes_on, read = slow_server
    goes_on.set()
    closing_folder.put(tmp_path / "step-000001", "step-000001")  # 12 times 0.3 s
    assert read == [FILE_BYTES]
    assert closing_folder.directories() == ["step-000001"]


def test_a_file_that_is_sent_when_it_is_closed_is_given_up_where_nothing_moves(
    closing_folder: WatchedFolder, tmp_path: Path
) -> None:
    with pytest.raises(HangingStorageError, match=r"/step-000001: cannot be written: nothing moved for the 1.5 s of "):
        closing_folder.put(tmp_path / "step-000001", "step-000001")


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
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            folder.write("config.toml", b"never")
    finally:
        signal.signal(signal.SIGINT, handler)


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


def test_processes_end_with_this_one_which_starts_no_thread_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")  # as CPython 3.12 says

    process = _Process()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    _end_all([process])
    assert process._child.wait() == -signal.SIGKILL  # pyright: ignore[reportPrivateUsage]


def test_a_process_has_time_to_start_in_a_stop_where_nothing_moved(tmp_path: Path) -> None:
    patience = Patience(0.2)  # no process starts in that
    end_processes()
    assert WatchedFolder(f"file://{tmp_path}/store", patience).read("config.toml") is None


def test_commands_that_look_at_a_storage_give_up_a_hanging_one(
    silent_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rayqd.runs.storage.fetch", "rayqd.doctor.parts"):
        monkeypatch.setattr(f"{module}.LOOK_SECONDS", 0.5)
    with pytest.raises(HangingStorageError, match=r"cannot be read: nothing moved for the 0.5 s of patience with a"):
        fetch_run(silent_server, tmp_path, [])
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    (found,) = check_storage(Config(storage=silent_server.replace("key:secret@", "")))
    assert (found.mark, found.subject) == ("fail", "storage")
    assert "nothing moved for the 0.5 s" in found.text
