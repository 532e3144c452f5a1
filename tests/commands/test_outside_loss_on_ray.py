"""A whole run on a loss of the user's own, which lies in the working directory and on no path."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.commands.distill import distill

pytestmark = [pytest.mark.slow, pytest.mark.ray]

LOSS = """
def squared_error(student_logits, teacher_logits, *, beta, temperature):
    return (student_logits - teacher_logits).square().mean(-1)
"""


def test_the_learner_s_process_finds_it_and_the_run_says_which_source_it_had(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loss_of_mine.py").write_text(LOSS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = tiny_config(distill={"lmbda": 0.0, "loss": "loss_of_mine:squared_error"})
    result = distill(config, Console(file=io.StringIO(), width=160))
    losses = [row["loss"] for row in result.metrics() if row["event"] == "step"]
    assert len(losses) == 4
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)
    assert 'loss = "loss_of_mine:squared_error"' in (result.run_dir / "config.toml").read_text()
    versions = json.loads((result.run_dir / "result.json").read_text())["environment"]["versions"]
    assert versions["loss_of_mine:squared_error"] == f"sha256 {hashlib.sha256(LOSS.encode()).hexdigest()}"
