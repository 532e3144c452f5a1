import errno
from pathlib import Path
from typing import Any

import pytest
import torch

import rayqd.learner.checkpoint
from rayqd.errors import RunError, StorageError
from rayqd.learner.checkpoint import Checkpoints, load_checkpoint

TENSORS = {"student": {"a": torch.arange(4.0)}, "optimizer": {"a:exp_avg": torch.ones(4), "a:step": torch.tensor(3.0)}}


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=2).save(7, TENSORS)
    assert path == tmp_path / "step-000007"
    tensors = load_checkpoint(path)
    for group, members in TENSORS.items():
        assert {name: t.tolist() for name, t in tensors[group].items()} == {n: t.tolist() for n, t in members.items()}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / ".step-000001.removed").mkdir()  # by a process that was killed over it
    for step in (2, 10, 4, 100):
        checkpoints.save(step, TENSORS)
    assert checkpoints.steps() == [10, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000100"]


def test_a_full_disk_is_one_clear_line_and_leaves_the_older_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    older = checkpoints.save(2, TENSORS)

    def full(tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rayqd.learner.checkpoint, "save_file", full)
    with pytest.raises(StorageError, match=r"no space for .*step-000004: it needs 0 MiB and \d+ MiB are free"):
        checkpoints.save(4, TENSORS)
    assert checkpoints.steps() == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["step-000002"]
    assert load_checkpoint(older).keys() == TENSORS.keys()


def test_a_half_written_one_of_an_earlier_life_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-000004.partial").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.steps() == []
    checkpoints.save(4, TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000004"]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(2, TENSORS)
    (path / "student.safetensors").write_bytes(b"\x08")
    with pytest.raises(RunError, match=r"step-000002 is damaged: student\.safetensors has 1 bytes of \d+; remove it"):
        load_checkpoint(path)


def test_no_byte_of_a_checkpoint_can_change_unseen(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(2, TENSORS)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for position in range(len(content)):
            file.write_bytes(content[:position] + bytes([content[position] ^ 0x11]) + content[position + 1 :])
            with pytest.raises(RunError, match="step-000002 is damaged"):
                load_checkpoint(path)
        file.write_bytes(content)
    assert load_checkpoint(path).keys() == TENSORS.keys()


@pytest.mark.parametrize("lost", ["student.safetensors", "optimizer.safetensors", "checksums.json"])
def test_one_without_a_file_gives_way_to_the_one_before(tmp_path: Path, lost: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (2, 4, 6):
        checkpoints.save(step, TENSORS)
    for step in (4, 6):
        (checkpoints.path(step) / lost).unlink()
    assert checkpoints.set_damaged_aside() == [
        f"checkpoint {checkpoints.path(6)} is damaged: {lost} is missing; it is now step-000006-damaged",
        f"checkpoint {checkpoints.path(4)} is damaged: {lost} is missing; it is now step-000004-damaged",
    ]
    assert checkpoints.steps() == [2]
    assert (tmp_path / "step-000006-damaged").is_dir()
    assert checkpoints.set_damaged_aside() == []
