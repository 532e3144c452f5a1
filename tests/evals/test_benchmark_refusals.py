"""What `rayqd eval --eval.tasks` refuses, before a model is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from rayqd.cli import main
from rayqd.config.resolved import to_toml
from tests.evals.task_files import CHOICE


@pytest.fixture
def fails(tiny_config: Any, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `rayqd eval` of the tiny model with changes; returns the one line of the error."""

    def run(*flags: str, exit_code: int = 2, model: Path = tiny_model) -> str:
        file = tmp_path / "run.toml"
        file.write_text(to_toml(tiny_config(model={"name": str(model)})))
        assert main(["eval", str(model), f"@{file}", *flags]) == exit_code
        captured = capsys.readouterr()
        assert "KL to teacher" not in captured.out  # refused before anything was measured
        lines = [line for line in captured.err.splitlines() if line.startswith("rayqd: ")]
        assert len(lines) == 1
        return lines[0].removeprefix("rayqd: error: ")

    return run


def test_an_unknown_task_names_the_nearest(fails: Any, few_files: None) -> None:
    assert fails("--eval.tasks", "arc_esay") == 'eval.tasks: there is no task "arc_esay"; did you mean arc_easy?'


def test_a_directory_of_tasks_that_is_none(fails: Any) -> None:
    line = fails("--eval.tasks", "quickstart_words", "--eval.tasks_dir", "nowhere")
    assert line == "eval.tasks_dir=nowhere is no directory"


def test_without_lm_eval_the_extra_is_named(fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayqd.evals.harness.find_spec", lambda name: None)
    line = fails("--eval.tasks", "quickstart_words")
    assert line == 'eval.tasks needs lm-evaluation-harness: pip install "rayqd[eval]"'


def test_a_base_model_has_no_template(fails: Any, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).symlink_to(file)
    line = fails("--eval.tasks", "quickstart_words", "--eval.apply_chat_template", model=base)
    assert line == "eval.apply_chat_template: the model has no chat template; leave it out for a base model"


def test_a_data_set_that_needs_a_network_and_has_none(
    fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "far.yaml").write_text(CHOICE.format(name="far", file="x").replace(": json", ": someone/something"))
    line = fails("--eval.tasks", "far", "--eval.tasks_dir", str(tmp_path), exit_code=1)
    assert line.startswith("task far needs a data set from the Hugging Face hub, which cannot be reached (")
    assert "HF_HOME" in line


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (": json", ": json", "FileNotFoundError"),  # the file of rows is not there
        ("test_split: train", "test_split: tset", "tset"),
    ],
)
def test_a_task_file_with_a_mistake_is_named(fails: Any, tmp_path: Path, old: str, new: str, told: str) -> None:
    file = tmp_path / "rows.jsonl"
    if old != new:
        file.write_text(json.dumps({"question": "a", "choices": ["b", "c"], "answer": 1}) + "\n")
    (tmp_path / "mine.yaml").write_text(CHOICE.format(name="mine", file=file).replace(old, new))
    line = fails("--eval.tasks", "mine", "--eval.tasks_dir", str(tmp_path), exit_code=1)
    assert line.startswith("task mine cannot be loaded: ")
    assert told in line


def test_other_tasks_than_those_of_the_run_may_be_asked_though_one_of_these_decided(
    fails: Any, tiny_config: Any, tiny_model: Path, tmp_path: Path, few_files: None
) -> None:
    (tmp_path / "runs").mkdir()
    file = tmp_path / "decided.toml"
    eval_settings = {"every": 2, "tasks": ["arc_easy"], "tasks_every": 4, "where": "rollout"}
    file.write_text(to_toml(tiny_config(eval=eval_settings, checkpoint={"best": "arc_easy/acc"})))
    for flags in (["--eval.every", "3"], ["--eval.tasks_every", "0"], ["--distill.lmbda", "0"]):
        line = fails(f"@{file}", "--eval.tasks", "quickstart_wrods", *flags)
        assert line == 'eval.tasks: there is no task "quickstart_wrods"; did you mean quickstart_words?'
