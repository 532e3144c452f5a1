"""`rayqd compare`: numbers under the right run, the settings that differ and no others, and what does not compare."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_directories import finished_run, open_run

from rayqd.cli import main
from rayqd.commands.compare import short_names
from tests.example_events import eval_event, step_event


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that compares runs in `runs` and returns the table's lines as cells."""
    monkeypatch.chdir(tmp_path)

    def compare(*words: str) -> list[list[str]]:
        assert main(["compare", *words]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines if line.strip()]

    return compare


def test_results_stand_under_their_run_and_settings_that_are_shared_do_not_stand_at_all(
    compared: Any, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    finished_run(runs, "lora", 0.25, distill={"beta": 0.0})
    finished_run(runs, "full", 0.125, distill={"beta": 0.0}, adapter={"kind": "none"}, learner={"steps": 4, "lr": 1e-5})
    assert compared("lora", str(runs / "full")) == [
        ["lora", "full"],
        ["settings that differ"],
        ["adapter.kind", "lora", "none"],
        ["learner.lr", "5e-06", "1e-05"],
        ["KL to teacher"],
        ["round-to-nearest INT4", "0.5000", "0.5000"],
        ["distilled INT4", "0.2500", "0.1250"],
        ["same top-1"],
        ["round-to-nearest INT4", "50.0%", "50.0%"],
        ["distilled INT4", "75.0%", "87.5%"],
        ["perplexity"],
        ["teacher", "10.000", "10.000"],
        ["round-to-nearest INT4", "10.500", "10.500"],
        ["distilled INT4", "10.250", "10.125"],
        ["size and time"],
        ["bits/weight", "4.25", "4.25"],
        ["size", "1.0 MB", "1.0 MB"],
        ["steps", "4", "4"],
        ["time", "1:01", "1:01"],
    ]


def test_more_runs_than_the_width_holds_are_put_below_each_other(
    compared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"run-with-a-name-of-some-length-{i}" for i in range(7)]
    for i, name in enumerate(names):
        finished_run(tmp_path / "runs", name, i / 8)
    lines = compared(*names)
    headings = [line for line in lines if line[0] in names]
    assert len(headings) == 2
    assert [name for heading in headings for name in heading] == names
    values = [value for line in lines if line[0] == "distilled INT4" and "0." in line[1] for value in line[1:]]
    assert values[: len(headings[0])] == [f"{i / 8:.4f}" for i in range(len(headings[0]))]


def test_of_a_long_path_the_end_is_shown(compared: Any, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", "a", 0.25, model={"name": "/a/folder/with/a/long/name/model-a"})
    finished_run(tmp_path / "runs", "b", 0.25, model={"name": "model-b"})
    # 28 characters with the ellipsis
    assert ["model.name", "…er/with/a/long/name/model-a", "model-b"] in compared("a", "b")


def test_a_run_that_goes_on_shows_what_it_has_and_is_marked(compared: Any, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", "done", 0.25)
    run = open_run(tmp_path / "runs", "going")
    run.append(eval_event("round-to-nearest INT4", 0.5), 0.0)
    run.append(step_event(1), 0.0)
    lines = compared("done", "going")
    run.close()
    assert ["distilled INT4", "0.2500", "-"] in lines
    assert ["going is running: its last numbers are those of step 1"] in lines


def test_other_held_out_text_is_told(compared: Any, tmp_path: Path) -> None:
    finished_run(tmp_path / "runs", "a", 0.25)
    finished_run(tmp_path / "runs", "b", 0.25, num_tokens=51)
    assert compared("a", "b")[-1] == [
        "measured on different held-out text or against different teachers: these KLs do not compare"
    ]


def test_json_tells_programs_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = finished_run(tmp_path, "a", 0.25), finished_run(tmp_path, "b", 0.125, seed=7)
    assert main(["compare", str(a), str(b), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"] == {"seed": [42, 7]}
    assert [run["rows"][-1]["kl_to_teacher"] for run in told["runs"]] == [0.25, 0.125]
    assert told["notes"] == []


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/s1/trial", "/r/s2/trial", "/r/x"], ["s1/trial", "s2/trial", "r/x"]),
        (["/r/a", "/r/a"], ["a", "a"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths: list[str], names: list[str]) -> None:
    assert short_names([Path(path) for path in paths]) == names


def test_one_run_is_not_enough(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a"]) == 2
    line = "rayqd compare needs two runs or more: rayqd compare runs/a runs/b"
    assert capsys.readouterr().err == f"rayqd: error: {line}\n"
