"""A whole run whose learner is two workers with half the weights each; its payload is that of docs/distillation.md."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayqd.commands.distill import distill
from rayqd.export.digest import find_differing_layers
from rayqd.export.load import load_export
from rayqd.learner.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PAGE = Path(__file__).parents[2] / "docs" / "distillation.md"
PAYLOAD = "theirs.payloads:MeanLogit"


def test_full_qat_on_two_workers_with_a_payload_of_the_users_own_exports_what_it_trained(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The payload's module lies in the working directory, which is on no path that Python looks at: as for `rayqd`.
    module = tmp_path / "theirs" / "payloads.py"
    module.parent.mkdir()
    module.write_text(PAGE.read_text().partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # Three sequences of a microbatch each for two workers: one of them has nothing left to do half of the time.
    config = tiny_config(
        adapter={"kind": "none"},
        teacher={"payload": PAYLOAD},
        distill={"lmbda": 0.0},
        eval={"num_rows": 4, "every": 3},
        learner={"num_workers": 2, "batch_size": 3, "microbatch_tokens": 1, "lr": 1e-4},
        ray={"dashboard": False, "placement_timeout_seconds": 600},
    )
    result = distill(config, Console(file=io.StringIO()))
    arms = {row["arm"]: row["kl_to_teacher"] for row in result.rows}
    assert list(arms) == ["teacher", "round-to-nearest INT4", "distilled INT4"]
    assert 0 < arms["distilled INT4"] != arms["round-to-nearest INT4"] > 0
    events = [row["event"] for row in result.metrics()]
    assert events.count("step") == 4
    losses = [row["loss"] for row in result.metrics() if row["event"] == "step"]
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)
    assert f'payload = "{PAYLOAD}"' in (result.run_dir / "config.toml").read_text()
    assert "eval" in events

    checkpoint = load_checkpoint(result.run_dir / "checkpoints" / "step-000004")
    assert len(checkpoint["digests"]) == 14  # seven layers in each of two decoder layers
    model = load_export(result.export_dir, config.model.dtype)
    assert find_differing_layers(checkpoint["digests"], model) == []
    exported = model.state_dict()
    for name, weight in checkpoint["student"].items():
        assert weight.shape == exported[name].shape  # whole
