"""A whole sweep in Ray Tune, killed in the middle: real trials of the tiny model, off-policy, so without an engine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rayqd.cli import main
from rayqd.config import load_config
from rayqd.config.resolved import to_toml

pytestmark = [pytest.mark.slow, pytest.mark.ray]

REPOSITORY = Path(__file__).parents[2]
STEPS = 8
SWEEP = """
[sweep]
scheduler = "asha"
grace_steps = 2
reduction_factor = 2
max_concurrent = 2
[sweep.over]
learner.lr = [1e-3, 1e-5, 1e-6]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_data: Path) -> Path:
    """A directory with sweep.toml, and a run.toml of the tiny model."""
    directory = tmp_path_factory.mktemp("sweep")
    flags = {
        "name": "tiny",
        "runs-dir": directory / "runs",
        "model.name": tiny_model,
        "quant.group-size": 64,
        "quant.init": "rtn",
        "adapter.rank": 4,
        "data.source": tiny_data,
        "data.max-length": 128,
        "data.min-room": 8,
        "eval.num-rows": 4,
        "distill.lmbda": 0,
        "distill.beta": 0,
        "learner.steps": STEPS,
        "learner.batch-size": 4,
        "checkpoint.every": 2,
    }
    (directory / "run.toml").write_text(to_toml(load_config([f"--{name}={value}" for name, value in flags.items()])))
    text = (directory / "run.toml").read_text().replace("every = 0\n", "")  # as if nobody had said it
    (directory / "run.toml").write_text(text)
    (directory / "sweep.toml").write_text(SWEEP)
    return directory


def test_a_sweep_killed_in_the_middle_ends_with_each_trial_once(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", f"@{files}/run.toml", f"@{files}/sweep.toml"]
    sweep_dir = files / "runs" / "tiny"
    output = killed_after_one_trial(command, sweep_dir)
    assert "asha after 2 and 4 of 8 steps" in output
    ended = [trial for trial in ledger(sweep_dir) if (sweep_dir / trial / "result.json").exists()]
    assert 1 <= len(ended) < 3
    kept = {trial: (sweep_dir / trial / "result.json").stat().st_mtime_ns for trial in ended}

    finished = subprocess.run(
        [sys.executable, "-m", "rayqd", *command, "--resume"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    assert f"{len(ended)} of 3 trials have ended already" in finished.stdout
    for trial in ended:
        assert f"{trial} begins" not in finished.stdout
        assert (sweep_dir / trial / "result.json").stat().st_mtime_ns == kept[trial]

    result = json.loads((sweep_dir / "result.json").read_text())
    assert sorted(trial["name"] for trial in result["trials"]) == ["001-lr=1e-3", "002-lr=1e-5", "003-lr=1e-6"]
    assert [trial["kl_to_teacher"] for trial in result["trials"]] == sorted(
        trial["kl_to_teacher"] for trial in result["trials"]
    )
    states = {trial["number"]: trial["state"] for trial in result["trials"]}
    assert set(states.values()) == {"finished", "stopped early"}
    for trial in result["trials"]:
        own = json.loads((sweep_dir / trial["name"] / "result.json").read_text())
        assert own["rows"][-1]["kl_to_teacher"] == trial["kl_to_teacher"]
        if trial["state"] == "finished":
            assert (trial["step"], steps_of(sweep_dir / trial["name"])) == (STEPS, list(range(1, STEPS + 1)))
            assert (sweep_dir / trial["name"] / "export" / "model.safetensors").exists()
            assert "Tokens of a row" in (sweep_dir / trial["name"] / "report.html").read_text()
        else:
            assert trial["step"] in (2, 4, 6)
            assert own["stopped_early"] == {"step": trial["step"], "of": STEPS}

    one_teacher_for_all(result, sweep_dir)
    best_goes_on(result, sweep_dir)
    assert "001-lr=1e-3" in (sweep_dir / "report.html").read_text()

    capsys.readouterr()
    assert main(command) == 0
    assert "has finished already" in capsys.readouterr().out
    assert main([*command, "--sweep.over.learner.lr", "1e-3,5e-3", "--learner.steps", "16"]) == 1
    assert "belongs to another configuration (learner.steps: 8 -> 16)" in capsys.readouterr().err
    assert main([*command, "--sweep.over.learner.lr", "1e-3,5e-3"]) == 1
    changed = "sweep.over.learner.lr: [0.001, 1e-05, 1e-06] -> [0.001, 0.005]"
    assert f"belongs to another sweep ({changed})" in capsys.readouterr().err


def killed_after_one_trial(command: list[str], sweep_dir: Path) -> str:
    """The sweep's process, killed once one trial has ended and another has a checkpoint; all it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rayqd", *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (any(sweep_dir.glob("*/result.json")) and len(ledger(sweep_dir)) > 2):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    return process.communicate(timeout=60)[0]


def ledger(sweep_dir: Path) -> list[str]:
    """Directories of the trials that were begun."""
    return sorted(path.parent.name for path in sweep_dir.glob("*/config.toml"))


def steps_of(run_dir: Path) -> list[int]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["event"] == "step"]


def one_teacher_for_all(result: dict[str, Any], sweep_dir: Path) -> None:
    """It is loaded once a session, and reads each of the rows once, whichever trial comes with it first."""
    loading = [
        json.loads((sweep_dir / trial["name"] / "result.json").read_text())["start_seconds"]["teacher-0"]
        for trial in result["trials"]
    ]
    assert sum(seconds > 0.5 * max(loading) for seconds in loading) <= 2
    # 32 rows are trained on, in the same order by every trial; a killed session may have read some and not told.
    assert result["teacher"]["cache_misses"] <= 32
    assert result["teacher"]["cache_hits"] >= 2 * 4


def best_goes_on(result: dict[str, Any], sweep_dir: Path) -> None:
    best = load_config([f"@{sweep_dir}/best.toml"])
    chosen = next(trial for trial in result["trials"] if trial["state"] == "finished")
    assert result["best"] == chosen["name"]
    assert best.name == "tiny-best"
    assert best.learner.lr == chosen["settings"]["learner.lr"]
    assert best.learner.steps == STEPS
