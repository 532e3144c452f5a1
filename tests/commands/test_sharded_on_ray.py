"""A whole run whose learner is two workers with half the weights each."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rayqd.commands.distill import distill
from rayqd.export.digest import find_differing_layers
from rayqd.export.load import load_export
from rayqd.learner.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_full_qat_on_two_workers_exports_what_it_trained(tiny_config: Any) -> None:
    # Three sequences of a microbatch each for two workers: one of them has nothing left to do half of the time.
    config = tiny_config(
        adapter={"kind": "none"},
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
    assert "eval" in events

    checkpoint = load_checkpoint(result.run_dir / "checkpoints" / "step-000004")
    assert len(checkpoint["digests"]) == 14  # seven layers in each of two decoder layers
    model = load_export(result.export_dir, config.model.dtype)
    assert find_differing_layers(checkpoint["digests"], model) == []
    exported = model.state_dict()
    for name, weight in checkpoint["student"].items():
        assert weight.shape == exported[name].shape  # whole
