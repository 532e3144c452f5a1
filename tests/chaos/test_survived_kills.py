"""Whatever of a run dies, it trains on what was planned, once, and comes to the same bits."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rayqd.commands.doctor_run import examine_run
from tests.chaos.chaos_config import make_config
from tests.chaos.disturbed_run import DisturbedRun, files_with_secrets, trained
from tests.chaos.faults import disturb

pytestmark = [pytest.mark.slow, pytest.mark.ray]

KILLS = ["rollout"] * 10 + ["teacher"] * 7 + ["learner"] * 2 + ["controller"]
STEPS_BETWEEN = 3


@pytest.fixture
def start(tmp_path: Path, tiny_model: Path, tiny_data: Path) -> Iterator[Any]:
    runs: list[DisturbedRun] = []

    def start(name: str, **sections: Any) -> DisturbedRun:
        runs.append(DisturbedRun(make_config(tiny_model, tiny_data, tmp_path, name, **sections), tmp_path))
        return runs[-1]

    yield start
    for run in runs:
        if run.runs:
            run.end()


def test_twenty_kills_over_all_roles_change_nothing(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(20)
    kills = draw.sample(KILLS, len(KILLS))
    settings = {"rollout": {"max_staleness": 2}, "learner": {"steps": STEPS_BETWEEN * (len(KILLS) + 1)}}
    whole = start("whole", **settings)
    assert whole.wait_for_end(600) == 0, whole.output

    run = start("disturbed", **settings)
    faults = []
    for number, role in enumerate(kills):
        assert run.wait(lambda: run.step >= STEPS_BETWEEN * (number + 1), 600), run.output  # noqa: B023
        fault = disturb(run, "kill", role, draw)
        assert fault, f"no process is called {role}"
        assert fault.seconds is not None, run.output
        faults.append(fault)
    assert run.wait_for_end(600) == 0, run.output
    assert len(faults) == len(KILLS)
    assert "Traceback" not in run.output
    assert "(raylet)" not in run.output  # what Ray itself prints
    assert [files_with_secrets(each) for each in (whole, run)] == [[], []]
    survived = sum(json.loads((run.config.run_dir / "result.json").read_text())["deaths"].values())
    assert survived > 0
    for each in (whole, run):
        assert examine_run(each.config.run_dir) == 0, capsys.readouterr().out
    assert trained(run.config.run_dir) == trained(whole.config.run_dir)
    left, right = (load_file(each.config.run_dir / "export" / "model.safetensors") for each in (whole, run))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
