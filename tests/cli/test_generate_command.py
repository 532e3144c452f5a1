"""`rayqd generate` as it is typed."""

import sys
import types
from pathlib import Path

import pytest

from rayqd.cli import main


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for rayqd.commands.generate that records its calls."""
    found: list[tuple] = []
    module = types.SimpleNamespace(generate=lambda config, **options: found.append((config, options)))
    monkeypatch.setitem(sys.modules, "rayqd.commands.generate", module)
    return found


def test_switches_stand_beside_settings_and_the_command_is_passed_on(calls):
    argv = ["generate", "--model", "student", "--out=a b.jsonl", "--num-rows", "20", "--rollout.temperature", "0.7"]
    assert main(argv) == 0
    ((config, options),) = calls
    assert config.rollout.temperature == 0.7
    assert options == {
        "model": "student",
        "out": Path("a b.jsonl"),
        "num_rows": 20,
        "command": "rayqd generate --model student '--out=a b.jsonl' --num-rows 20 --rollout.temperature 0.7",
    }


def test_without_switches_the_teacher_answers_everything(calls):
    assert main(["generate"]) == 0
    assert calls[0][1] == {"model": "teacher", "out": None, "num_rows": None, "command": "rayqd generate"}


def test_a_runs_directory_brings_its_settings_and_a_directory_around_it_does_not(calls, tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text("seed = 5")
    monkeypatch.chdir(tmp_path)
    main(["generate", "--model", str(tmp_path)])
    main(["generate", "--model", "teacher"])
    assert [config.seed for config, _ in calls] == [5, 42]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--num-rows", "0"], "flag --num-rows=0: must be a whole number of at least 1"),
        (["--num-rows", "many"], "flag --num-rows=many: must be a whole number of at least 1"),
        (["--out"], "flag --out: needs a value: --out FILE"),
        (["--modle", "x"], "unknown flag --modle; did you mean --model?"),
        (["teacher"], 'unexpected argument "teacher"; give settings as @file.toml or --section.field VALUE'),
    ],
)
def test_a_mistake_is_one_line(calls, words, line, capsys):
    assert main(["generate", *words]) == 2
    assert capsys.readouterr().err == f"rayqd: error: {line}\n"
    assert calls == []


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(config, **options):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "rayqd.commands.generate", types.SimpleNamespace(generate=interrupt))
    assert main(["generate"]) == 130
    assert capsys.readouterr().err == "rayqd: stopped; the same command goes on where this one ended\n"
