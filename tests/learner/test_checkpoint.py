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
    for step in (2, 10, 4, 100):
        checkpoints.save(step, TENSORS)
    assert checkpoints.steps() == [10, 100]


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
    with pytest.raises(RunError, match="step-000002 cannot be read"):
        load_checkpoint(path)
