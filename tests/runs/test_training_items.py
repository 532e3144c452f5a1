"""What training measures on each document has a file of its own beside those of `rayqd eval`, never half there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayqd.runs import benchmarks
from rayqd.runs.benchmarks import items_file, training_name, write_items


def test_training_and_eval_of_its_checkpoint_write_two_files(tmp_path: Path) -> None:
    mine, of_eval = (items_file(tmp_path, name) for name in (training_name(100), "step-000100"))
    assert mine != of_eval
    assert write_items(tmp_path, training_name(100), [{"values": [1.0]}]) is None
    assert [path.name for path in mine.parent.iterdir()] == ["training-step-000100-items.jsonl"]
    assert json.loads(mine.read_text()) == {"values": [1.0]}


def test_items_that_cannot_be_written_leave_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_items(tmp_path, "mine", [{"values": [1.0]}])
    before = items_file(tmp_path, "mine").read_bytes()

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(benchmarks.json, "dumps", full)
    line = write_items(tmp_path, "mine", [{"values": [2.0]}])
    assert line is not None
    assert "No space left on device" in line
    assert items_file(tmp_path, "mine").read_bytes() == before
