"""The storage has what the learner's disk has, also after an upload failed, and every worker starts from the same."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rayqd.learner.upload
from rayqd.checksums import seal
from rayqd.errors import StorageError
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.upload import CheckpointUploader
from rayqd.runs.storage.folder import Folder
from rayqd.runs.storage.watched import Patience, WatchedFolder


class Node:
    """A machine's disk with the run on it."""

    def __init__(self, run_dir: Path, store: Path, keep: int = 2, folder: Folder | None = None) -> None:
        self.run_dir = run_dir
        self.told: list[str] = []
        self.checkpoints = Checkpoints(run_dir / "checkpoints", keep)
        folder = folder or Folder.open(f"file://{store}")
        patience = folder.patience if isinstance(folder, WatchedFolder) else None
        self.uploader = CheckpointUploader(folder, run_dir, self.checkpoints, self.told.append, patience)
        self.checkpoints.on_saved = self.uploader.update

    def save(self, *steps: int) -> None:
        for step in steps:
            self.checkpoints.save(step, {"student": {"a": torch.full((3,), float(step))}})
        self.uploader.wait()

    def has(self, part: str) -> None:
        (self.run_dir / part).mkdir(parents=True)
        (self.run_dir / part / "file").write_text(part)
        seal(self.run_dir / part)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def node(tmp_path: Path, store: Path) -> Node:
    return Node(tmp_path / "node", store)


def stored_steps(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "checkpoints").iterdir())


def test_the_storage_keeps_the_checkpoints_that_the_disk_keeps(node: Node, store: Path) -> None:
    node.has("start")
    node.save(2, 4, 6)
    assert stored_steps(store) == ["step-000004", "step-000006"]
    assert (store / "start" / "manifest.json").is_file()
    assert node.told == []


def test_an_empty_machine_goes_on_from_the_newest(node: Node, store: Path, tmp_path: Path) -> None:
    node.has("start")
    node.save(2, 4)
    other = Node(tmp_path / "other", store)
    other.uploader.fetch(is_rank0=True)
    assert other.checkpoints.steps() == [4]
    assert load_checkpoint(other.checkpoints.path(4))["student"]["a"].tolist() == [4, 4, 4]
    assert (other.run_dir / "start" / "file").read_text() == "start"
    other.save(6)
    assert stored_steps(store) == ["step-000004", "step-000006"]


def test_a_failed_upload_is_told_and_made_good_by_the_next_checkpoint(node: Node, store: Path) -> None:
    node.save(2)
    store.rename(store.with_name("away"))
    store.write_text("in the way")
    node.save(4)
    (told,) = node.told
    assert told.startswith(f"file://{store}")
    assert told.endswith(f"; it is kept in {node.run_dir}, and the next checkpoint tries again")
    assert node.checkpoints.steps() == [2, 4]
    store.unlink()
    store.with_name("away").rename(store)
    node.save(6)
    assert stored_steps(store) == ["step-000004", "step-000006"]
    assert len(node.told) == 1


def test_a_checkpoint_that_never_reached_the_storage_does_so_before_training_goes_on(node: Node, store: Path) -> None:
    node.save(2)
    node.checkpoints.on_saved = None  # the process dies before the upload
    node.save(4)
    node.uploader.fetch(is_rank0=True)
    assert stored_steps(store) == ["step-000002", "step-000004"]


def test_another_worker_forgets_a_step_that_the_run_does_not_know(node: Node, store: Path, tmp_path: Path) -> None:
    other = Node(tmp_path / "other", store)
    other.save(2)
    other.checkpoints.on_saved = None
    other.save(8)  # once the first worker was here, and the node was lost before the upload
    node.uploader.fetch(is_rank0=True)
    node.save(4)
    other.uploader.fetch(is_rank0=False)
    assert other.checkpoints.steps() == [2, 4]


def test_an_upload_that_broke_off_is_not_taken_for_a_checkpoint(node: Node, store: Path, tmp_path: Path) -> None:
    node.save(2, 4)
    (store / "checkpoints" / "step-000004" / "manifest.json").unlink()
    other = Node(tmp_path / "other", store)
    other.uploader.fetch(is_rank0=True)
    assert other.checkpoints.steps() == [2]


def test_a_damaged_checkpoint_in_the_storage_is_put_aside_for_the_one_before(
    node: Node, store: Path, tmp_path: Path
) -> None:
    node.save(2, 4)
    weights = store / "checkpoints" / "step-000004" / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    other = Node(tmp_path / "other", store)
    other.uploader.fetch(is_rank0=True)
    assert other.checkpoints.steps() == [2]
    assert other.told == [
        f"file://{store}/checkpoints/step-000004/student.safetensors: is not what was written; "
        "it counts as absent from now on"
    ]
    assert weights.read_bytes() == content
    other.save(4)
    assert stored_steps(store) == ["step-000002", "step-000004"]
    third = Node(tmp_path / "third", store)
    third.uploader.fetch(is_rank0=True)
    assert (third.checkpoints.steps(), third.told) == ([4], [])


def test_a_damaged_checkpoint_of_this_node_is_fetched_again(node: Node) -> None:
    node.save(2, 4)
    (node.checkpoints.path(4) / "student.safetensors").unlink()
    node.uploader.fetch(is_rank0=True)
    assert load_checkpoint(node.checkpoints.path(4))["student"]["a"].tolist() == [4, 4, 4]
    (told,) = node.told
    assert told.endswith("student.safetensors is missing; it is now step-000004-damaged")


def test_the_end_uploads_the_export_and_insists(node: Node, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(rayqd.learner.upload.time, "sleep", pauses.append)
    node.has("export")
    node.uploader.finish()
    assert (store / "export" / "file").read_text() == "export"
    assert pauses == []
    shutil.rmtree(store)
    store.write_text("in the way")
    with pytest.raises(StorageError, match=r"; mend that, and the same command finishes the run$"):
        node.uploader.finish()
    assert len(pauses) == 2  # three attempts


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Node]:
    """A node whose storage takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        uri = f"s3://key:secret@bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        yield Node(tmp_path / "node", tmp_path, folder=WatchedFolder(uri, Patience(1.5)))


def test_nobody_waits_for_a_storage_that_hangs_before_the_end(hanging: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rayqd.learner.upload.time, "sleep", lambda seconds: None)
    for step in (2, 4, 6, 8):
        hanging.checkpoints.save(step, {"student": {"a": torch.full((3,), float(step))}})
        assert hanging.told == []  # training goes on while the first upload hangs
    hanging.uploader.wait()
    assert hanging.told[0].startswith("s3://bucket/runs/checkpoints: cannot be listed: nothing moved for the 1.5 s of ")
    assert hanging.told[0].endswith(f"; it is kept in {hanging.run_dir}, and the next checkpoint tries again")
    assert hanging.checkpoints.steps() == [6, 8]
    with pytest.raises(
        StorageError, match=r"; it lacks checkpoints/step-000006, checkpoints/step-000008, export; mend that, and the "
    ):
        hanging.uploader.finish()


def test_a_stop_does_not_wait_for_a_storage_that_hangs(hanging: Node) -> None:
    assert hanging.uploader._patience  # pyright: ignore[reportPrivateUsage]
    hanging.uploader._patience.seconds = 10_000.0  # pyright: ignore[reportPrivateUsage]
    hanging.checkpoints.save(2, {"student": {"a": torch.zeros(3)}})
    hanging.uploader.flush()
    assert "of a stop; it is kept in" in hanging.told[0]


def test_a_checkpoint_that_is_being_uploaded_stays_until_it_is(node: Node, store: Path) -> None:
    node.checkpoints.on_saved = None
    node.save(2)
    node.checkpoints.held = [2]
    node.save(4, 6)
    assert node.checkpoints.steps() == [2, 4, 6]
    node.uploader.update()
    node.uploader.wait()
    assert node.checkpoints.steps() == [4, 6]
    assert stored_steps(store) == ["step-000002", "step-000004", "step-000006"]


def test_an_error_of_this_machine_is_told_as_a_failed_upload_and_made_good(
    node: Node, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Checkpoints) -> list[int]:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Checkpoints, "best_steps", fail)
        node.uploader.update()
        node.uploader.wait()
    assert node.told == [
        f"an upload broke off: OSError: [Errno 5] Input/output error; it is kept in {node.run_dir}, and the next "
        "checkpoint tries again"
    ]
    node.save(2)
    assert stored_steps(store) == ["step-000002"]


def test_a_checkpoint_that_was_removed_while_it_was_read_is_not_one_in_the_storage(tmp_path: Path, store: Path) -> None:
    class Removing(Folder):
        def put(self, directory: Path, name: str) -> None:
            if name == "step-000002":
                (directory / "student.safetensors").unlink()
                super().put(directory, name)
                shutil.rmtree(directory)
            else:
                super().put(directory, name)

        def inside(self, name: str) -> Folder:
            return Removing(self._filesystem, f"{self._path}/{name}", f"{self._uri}/{name}")

    node = Node(tmp_path / "node", store, folder=Removing.open(f"file://{store}"))
    node.checkpoints.on_saved = None
    node.save(2, 4)
    node.uploader.update()
    node.uploader.wait()
    assert stored_steps(store) == ["step-000004"]
