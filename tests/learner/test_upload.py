"""The storage has what the learner's disk has, also after an upload failed, and every worker starts from the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import rayqd.learner.upload
from rayqd.checksums import seal
from rayqd.errors import StorageError
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint
from rayqd.learner.upload import CheckpointUploader
from rayqd.runs.storage.folder import Folder


class Node:
    """A machine's disk with the run on it."""

    def __init__(self, run_dir: Path, store: Path, keep: int = 2) -> None:
        self.run_dir = run_dir
        self.told: list[str] = []
        self.checkpoints = Checkpoints(run_dir / "checkpoints", keep)
        self.uploader = CheckpointUploader(Folder.open(f"file://{store}"), run_dir, self.checkpoints, self.told.append)
        self.checkpoints.on_saved = self.uploader.update

    def save(self, *steps: int) -> None:
        for step in steps:
            self.checkpoints.save(step, {"student": {"a": torch.full((3,), float(step))}})

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
