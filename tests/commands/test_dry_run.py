"""A dry run tells what a run would be, starts nothing and leaves nothing, and fails as the run would."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ray

from rayqd.cli import main
from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.jobs import Jobs
from rayqd.config.comparison import load_comparison
from rayqd.config.resolved import to_toml
from tests.comparison.made_runs import leave_run


@pytest.fixture
def dry_run(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs `rayqd distill --dry-run` on the tiny configuration; returns exit code, screen and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*flags: str, **sections: Any) -> tuple[int, str, str]:
        file = tmp_path / "run.toml"
        file.write_text(to_toml(tiny_config(**sections)))
        code = main(["distill", f"@{file}", "--dry-run", *flags])
        captured = capsys.readouterr()
        assert not ray.is_initialized()
        return code, captured.out, captured.err

    return run


def test_it_tells_roles_tokens_and_place_and_leaves_nothing(dry_run: Any, tmp_path: Path) -> None:
    code, out, err = dry_run("--rollout.num_workers", "2")
    assert (code, err) == (0, "")
    roles = {line.split()[1]: line.split()[3] for line in out.splitlines() if line.startswith(("│ ", "| "))}
    assert roles == {"learner": "1", "rollout": "2", "teacher": "1"}
    assert "4 of 4 sequences" in out
    assert f"{4 * 128:,} at most" in out  # batch_size x max_length
    assert "directory runs/tiny: a new run" in out
    assert not (tmp_path / "runs").exists()


def test_off_policy_asks_for_no_rollout_worker(dry_run: Any) -> None:
    code, out, _ = dry_run("--distill.lmbda", "0")
    assert code == 0
    assert "│ rollout" not in out
    assert "│ teacher" in out


def test_a_cluster_that_is_not_asked_is_named(dry_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    code, out, _ = dry_run()
    assert code == 0
    assert "cluster   10.0.0.1:6379: 1 rollout, 1 teacher, 1 learner workers" in out


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--quant.group_size", "96"], 2, "96"),
        (["--model.name", "./nowhere"], 1, "model directory nowhere does not exist"),
        (["--rollout.num_workers", "900"], 1, "no room for"),
        (["--learning_rate", "1"], 2, "rayqd's name for it is learner.lr"),
    ],
)
def test_it_fails_as_the_run_would(flags: list[str], code: int, said: str, dry_run: Any, tmp_path: Path) -> None:
    found, _, err = dry_run(*flags)
    assert found == code
    assert said in err
    assert err.startswith("rayqd: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_is_no_run_and_one_of_other_settings_are_refused(
    dry_run: Any, tiny_config: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "tiny"
    run_dir.mkdir(parents=True)
    (run_dir / "thesis.txt").write_text("words")
    assert "is not empty and not a run's directory" in dry_run()[2]
    (run_dir / "thesis.txt").unlink()
    (run_dir / "config.toml").write_text(to_toml(tiny_config(learner={"lr": 5e-4})))
    assert "a run that has not begun" in dry_run()[1]
    (run_dir / "start").mkdir()
    assert "learner.lr: 0.0005 -> 0.001" in dry_run()[2]
    assert sorted(os.listdir(run_dir)) == ["config.toml", "start"]


def test_quantizing_is_tried_as_far_as_it_costs_nothing(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.toml"
    file.write_text(to_toml(tiny_config(quant={"method": "awq", "calibration_tokens": 60})))
    assert main(["quantize", f"@{file}", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "method    awq, calibrated on " in out
    assert "first row: " in out
    assert "directory runs/tiny: a new run" in out
    assert not (tmp_path / "runs").exists()
    assert main(["quantize", f"@{file}", "--dry-run", "--quant.group_size", "96"]) == 2
    assert "96" in capsys.readouterr().err


def test_a_sweep_is_tried_with_all_its_values_and_leaves_nothing(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    over = '[sweep]\nsearch = "grid"\n[sweep.over]\nlearner.lr = [1e-4, 1e-3]\nquant.group_size = [{}]\n'
    file = tmp_path / "sweep.toml"
    settings = to_toml(tiny_config())
    file.write_text(f"{settings}\n{over.format('32, 64')}")
    assert main(["sweep", f"@{file}", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "4 trials of learner.lr and quant.group_size" in out
    assert "trials at a time" in out
    assert "directory runs/tiny: a new sweep" in out
    assert not ray.is_initialized()
    assert not (tmp_path / "runs").exists()
    file.write_text(f"{settings}\n{over.format('32, 96')}")
    assert main(["sweep", f"@{file}", "--dry-run"]) == 2
    assert "96" in capsys.readouterr().err


COMPARE = "[compare]\nseeds = [0]\n{}\n[compare.arms]\ngptq = {{}}\noff-policy = {{}}\non-policy = {{}}\n"


def test_a_comparison_is_tried_with_all_its_arms_and_says_what_is_there(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(f'{{"prompt": "Write {i}!", "completion": "{i} and {i}."}}\n' for i in range(8)))
    config = tiny_config(
        eval={"source": str(heldout), "continuations": 3}, distill={"beta": 0.0}, quant={"calibration_tokens": 200}
    )
    settings = "\n".join(line for line in to_toml(config).splitlines() if not line.startswith(("lmbda", "method")))
    file = tmp_path / "run.toml"

    def run(compare: str = "") -> tuple[int, str, str]:
        file.write_text(f"{settings}\n{COMPARE.format(compare)}")
        code = main(["compare", f"@{file}", "--dry-run"])
        captured = capsys.readouterr()
        assert not ray.is_initialized()
        return code, captured.out, captured.err

    def states(out: str) -> dict[str, tuple[str, ...]]:
        """By run: the command, its steps, and how it stands."""
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│ rayqd " in line]
        return {line[0]: tuple(line[1:]) for line in lines}

    code, out, err = run()
    assert (code, err) == (0, "")
    assert states(out) == {
        "rtn": ("rayqd quantize", "", "a new run"),
        "gptq-seed=0": ("rayqd quantize", "", "a new run"),
        "off-policy-seed=0-steps=4": ("rayqd distill", "4", "a new run"),
        "on-policy-seed=0-steps=4": ("rayqd distill", "4", "a new run"),
    }
    assert "runs      4 to be run, 0 have finished" in out
    assert "each run's student goes on from 3 prompts of held-out rows" in out
    assert "directory runs/tiny: a new comparison" in out
    assert "runs train at a time" in out
    assert "│ rollout" in out
    assert not (tmp_path / "runs").exists()

    jobs = Jobs(load_comparison([f"@{file}"]))
    ComparisonDirectory(jobs).close()
    leave_run(jobs.baselines()[1], 0.15)
    before = sorted((tmp_path / "runs").rglob("*"))
    code, out, err = run('budget = "tokens"\namount = 9000')
    assert (code, err) == (0, "")
    assert states(out) == {
        "rtn": ("rayqd quantize", "", "a new run"),
        "gptq-seed=0": ("rayqd quantize", "", "has finished"),
        "off-policy-pilot-seed=0-steps=4": ("rayqd distill", "4", "a new run"),
        "on-policy-pilot-seed=0-steps=4": ("rayqd distill", "4", "a new run"),
        "off-policy-seed=0": ("rayqd distill", "?", "a new run"),
        "on-policy-seed=0": ("rayqd distill", "?", "a new run"),
    }
    assert "the pilot says how many steps 9,000 tokens are" in out
    assert "runs      5 to be run, 1 have finished" in out
    assert sorted((tmp_path / "runs").rglob("*")) == before

    settings = settings.replace("rank = 4", "rank = 4\ndropout = 0.5")
    assert run()[0] == 2
    assert main(["compare", "runs/a", "runs/b", "--dry-run"]) == 2
    assert "--dry-run: goes with @file.toml" in capsys.readouterr().err
