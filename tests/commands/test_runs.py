"""`rayqd runs`: what state a run is in, and what is said of it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_directories import finished_run, open_run, result_of

from rayqd.cli import main
from rayqd.commands.runs import age, find_runs
from rayqd.errors import ModelError
from rayqd.runs.ended import record_abnormal_exit
from rayqd.runs.record import is_running, read_run
from rayqd.runs.result_file import QuantizeResult, StoppedEarly
from tests.example_events import eval_event, step_event

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of runs where `rayqd runs` looks by itself."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def ended_by(runs_dir: Path, name: str, error: BaseException) -> Path:
    run = open_run(runs_dir, name)
    with pytest.raises(type(error)), record_abnormal_exit(run.path):
        raise error
    run.close()
    return run.path


def test_a_run_that_goes_on_is_running_and_looking_at_it_does_not_disturb_it(runs_dir: Path) -> None:
    run = open_run(runs_dir, "one")
    assert is_running(run.path)
    assert read_run(run.path).state == "running"
    run.close()
    assert not is_running(run.path)
    open_run(runs_dir, "one").close()  # the look left no lock behind


@pytest.mark.parametrize(
    ("error", "state", "text", "exit_code"),
    [
        (ModelError("no\n  such model"), "failed", "no such model", 1),
        (KeyError("step"), "failed", "KeyError: 'step'", 1),
        (KeyboardInterrupt(), "stopped", "", 130),
        (SystemExit(15), "stopped", "", 15),
    ],
)
def test_what_broke_a_run_off_is_kept(
    error: BaseException, state: str, text: str, exit_code: int, runs_dir: Path
) -> None:
    record = read_run(ended_by(runs_dir, "one", error))
    assert (record.state, record.error, record.exit_code) == (state, text, exit_code)


def test_an_abnormal_exit_is_forgotten_when_the_run_goes_on(runs_dir: Path) -> None:
    path = ended_by(runs_dir, "one", ModelError("no such model"))
    run = open_run(runs_dir, "one")
    assert read_run(path).state == "running"
    with record_abnormal_exit(path):
        pass
    run.close()
    record = read_run(path)
    assert (record.state, record.error, record.exit_code) == ("unfinished", "", None)


def test_a_process_that_was_killed_leaves_an_unfinished_run(runs_dir: Path) -> None:
    program = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from rayqd.runs.ended import record_abnormal_exit
from run_directories import open_run
with record_abnormal_exit(open_run(Path({str(runs_dir)!r}), "one").path):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == -signal.SIGKILL
    assert read_run(runs_dir / "one").state == "unfinished"


def test_a_result_is_a_finished_run(runs_dir: Path) -> None:
    record = read_run(finished_run(runs_dir, "one", 0.125))
    assert (record.state, record.exit_code, record.step, record.num_steps) == ("finished", 0, 4, 4)


def test_a_trial_that_its_sweep_ended_is_stopped_and_may_go_on(runs_dir: Path) -> None:
    run = open_run(runs_dir, "one")
    run.finish(replace(result_of("one", 0.2), stopped_early=StoppedEarly(step=2, of=4)))
    assert read_run(run.path).state == "running"
    run.close()
    assert read_run(run.path).state == "stopped"


def test_the_list_is_a_line_a_run_newest_first_with_runs_of_sweeps(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.utime(finished_run(runs_dir, "old", 0.125) / "result.json", (1, 1))
    trial = open_run(runs_dir / "a-sweep", "trial-3", quant={"format": "nvfp4"})
    trial.append(eval_event("round-to-nearest NVFP4", 0.25), 0.0)
    trial.append(step_event(1), 0.0)
    for file in (runs_dir / "old").glob("[cm]*"):
        os.utime(file, (1, 1))
    assert main(["runs"]) == 0
    heading, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    trial.close()
    assert heading == ["RUN", "STATE", "STEP", "KL", "TO", "TEACHER", "MODEL", "FORMAT", "AGE"]
    assert lines[0][:-2] == ["a-sweep/trial-3", "running", "1/4", "0.2500", "Qwen3-4B-Instruct-2507", "nvfp4", "g16"]
    assert lines[1][:-2] == ["old", "finished", "4/4", "0.5000", "→", "0.1250", "Qwen3-4B-Instruct-2507", "int4", "g64"]
    assert lines[1][-1] == "d"


def test_json_tells_programs_the_same(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run(runs_dir, "one", 0.125)
    assert main(["runs", "runs", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert run.pop("updated") > 1e9
    assert run == {
        "name": "one", "path": "runs/one", "command": "distill", "state": "finished", "error": None,
        "step": 4, "num_steps": 4, "first_arm": "round-to-nearest INT4", "first_kl_to_teacher": 0.5,
        "last_arm": "distilled INT4", "last_kl_to_teacher": 0.125, "model": "Qwen/Qwen3-4B-Instruct-2507",
        "format": "int4", "group_size": 64,
    }  # fmt: skip


def test_a_quantized_model_has_no_steps(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_run(runs_dir, "one", "quantize")
    rows = result_of("one", 0.1).rows
    run.finish(QuantizeResult(name="one", rows=rows, seconds={"total": 3.0}, method="gptq"))
    run.close()
    main(["runs", "--json"])
    (fields,) = json.loads(capsys.readouterr().out)
    assert (fields["command"], fields["step"], fields["num_steps"]) == ("quantize", None, None)


def test_what_failed_and_what_cannot_be_read_is_told_below_the_list(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_by(runs_dir, "broken", ModelError("no such model"))
    (runs_dir / "strange").mkdir()
    (runs_dir / "strange" / "config.toml").write_text("# rayqd distill\n\nof_tomorrow = 1\n")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert "broken: no such model\n" in out
    assert "strange: runs/strange/config.toml: of_tomorrow = 1: unknown setting of_tomorrow" in out


def test_metrics_that_are_cut_off_in_the_middle_of_a_row_are_read_up_to_it(runs_dir: Path) -> None:
    run = open_run(runs_dir, "one")
    run.append(step_event(1), 0.0)
    run.append(step_event(2), 0.0)
    run.close()
    whole = run.metrics.read_text()
    run.metrics.write_text(whole[:-20])
    assert read_run(run.path).step == 1


def test_one_run_may_be_named_itself(runs_dir: Path) -> None:
    finished_run(runs_dir, "one", 0.1)
    assert [record.name for record in find_runs(runs_dir / "one")] == ["one"]


def test_a_sweep_is_listed_with_its_runs_and_opens_to_them(runs_dir: Path) -> None:
    sweep = open_run(runs_dir, "grid", "sweep")
    finished_run(runs_dir / "grid", "trial-0", 0.1)
    sweep.finish(SimpleNamespace(to_json=lambda: {"best": "trial-0"}))
    sweep.close()
    assert {record.name: record.state for record in find_runs(runs_dir)} == {
        "grid": "finished",
        "grid/trial-0": "finished",
    }
    assert [record.name for record in find_runs(runs_dir / "grid")] == ["trial-0"]
    assert main(["watch", str(runs_dir / "grid")]) == main(["runs"]) == 0


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["nowhere"], 1, "nowhere is no directory: rayqd runs DIR lists the runs in DIR, which runs_dir sets"),
        (["a", "b"], 2, 'unexpected argument "b": rayqd runs takes 1'),
    ],
)
def test_a_mistake_is_one_line(words: list[str], code: int, error: str, runs_dir: Path, capsys: Any) -> None:
    assert main(["runs", *words]) == code
    assert capsys.readouterr().err == f"rayqd: error: {error}\n"


@pytest.mark.parametrize("exists", [False, True])
def test_where_nothing_has_run_yet_there_are_no_runs(exists: bool, runs_dir: Path, capsys: Any) -> None:
    if exists:
        runs_dir.mkdir()
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
    assert main(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.9, "59 s"), (60, "1 min"), (7199, "1 h"), (172800, "2 d")]
)
def test_ages_are_in_the_largest_unit_that_fits(seconds: float, text: str) -> None:
    assert age(seconds) == text
