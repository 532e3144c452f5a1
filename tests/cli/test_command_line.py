"""Commands, their exit codes, and what they print; none of it may load torch."""

import json
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

from rayqd.cli import COMMANDS, main
from rayqd.config.settings import settings
from rayqd.errors import ModelError

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "vllm", "transformers", "datasets", "numpy"}


@pytest.fixture
def run_module(monkeypatch):
    """A stand-in for the modules `distill`, `quantize` and `evaluate` of rayqd.commands that records its calls."""
    calls: list[tuple] = []
    module = types.SimpleNamespace(
        calls=calls,
        distill=lambda config, began: calls.append((config,)),
        quantize=lambda config, began: calls.append((config,)),
        evaluate=lambda path, config: calls.append((path, config)),
    )
    monkeypatch.setitem(sys.modules, "rayqd.commands.distill", module)
    monkeypatch.setitem(sys.modules, "rayqd.commands.quantize", module)
    monkeypatch.setitem(sys.modules, "rayqd.commands.evaluate", module)
    return module


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["distill", "--help"],
        ["distill", "--help", "learner"],
        ["help", "learner.lr"],
        ["version"],
        ["config", f"@{ROOT}/configs/quickstart.toml"],
        ["runs", str(ROOT / "configs")],
        ["completion", "bash"],
    ],
)
def test_what_needs_no_model_loads_nothing_heavy(argv):
    program = (
        "import json, sys\nfrom rayqd.cli import main\n"
        f"assert main({argv!r}) == 0\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not HEAVY & set(json.loads(done.stderr))


def test_python_dash_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "rayqd", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rayqd ")


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_top_level_help_names_every_command(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert all(f"  {command.name:12}{command.text}\n" in out for command in COMMANDS.values())


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.takes_settings])
def test_help_of_a_command_tells_every_setting_and_its_text_and_default(command, capsys):
    assert main([command, "--help"]) == 0
    out = words(capsys.readouterr().out)
    for setting in settings().values():
        assert setting.text
        assert f"--{setting.key}" in out
        assert words(f"{setting.text} [{setting.must_be}; default ") in out


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.first_settings])
def test_help_begins_with_the_ten_settings_that_matter(command, capsys):
    assert len(COMMANDS[command].first_settings) == 10
    assert main(["help", command]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = [line.split()[0].removeprefix("--") for line in lines if line.startswith("  --")]
    assert named[:10] == list(COMMANDS[command].first_settings)
    assert lines.index("The settings that matter most, with their defaults (all others are below):") < 6


@pytest.mark.parametrize(
    "argv",
    [["distill", "--help", "learner"], ["help", "distill", "learner"], ["help", "learner"], ["--help", "learner"]],
)
def test_help_of_a_section_shows_its_settings_and_no_others(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    named = {line.split()[0].removeprefix("--").rstrip(",") for line in out.splitlines() if line.startswith("  --")}
    assert named == {key for key in settings() if key.startswith("learner.")}


@pytest.mark.parametrize("topic", ["learner.lr", "--learner.lr", "lr", "learning_rate", "learning-rate"])
def test_help_of_one_setting_is_found_by_any_of_its_names(topic, capsys):
    assert main(["help", "distill", topic]) == 0
    out = capsys.readouterr().out
    assert settings()["learner.lr"].text in out
    assert out.count("  --") == 1


def test_help_of_an_option_is_its_text(capsys):
    assert main(["export", "--help", "verify"]) == 0
    assert words(capsys.readouterr().out).startswith("--verify load the export afresh")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["help", "distil"], 'unknown command "distil"; did you mean distill?'),
        (["distill", "--help", "lrx"], 'there is no help on "lrx"; did you mean learner.lr?'),
    ],
)
def test_help_on_what_there_is_not_says_what_is_near(argv, line, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err == f"rayqd: error: {line}\n"


@pytest.mark.parametrize("argv", [["--version"], ["-V"], ["version"]])
def test_the_version_is_the_first_line(argv, capsys):
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("rayqd ")


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if not command.takes_settings])
def test_a_command_without_settings_lists_none_and_refuses_them(command, capsys):
    assert main([command, "--help"]) == 0
    assert "--seed" not in capsys.readouterr().out
    for word in ("@a.toml",) if command == "help" else ("--seed", "@a.toml"):  # there is help on a flag
        assert main([command, word, "1"]) == 2
        line = f'rayqd: error: unexpected argument "{word}": rayqd {command} takes no settings\n'
        assert capsys.readouterr().err == line


def test_config_prints_toml_with_the_flag_in_it(capsys):
    assert main(["config", f"@{ROOT}/configs/quickstart.toml", "--learner.steps", "3"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert (printed["name"], printed["learner"]["steps"]) == ("quickstart", 3)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["distil"], 'unknown command "distil"; did you mean distill?'),
        (["zzz"], f'unknown command "zzz"; there are {", ".join(COMMANDS)}'),
        (["@a.toml"], '"@a.toml" stands where the command belongs: rayqd distill @a.toml'),
        (["config", "--sed", "1"], "flag --sed=1: unknown setting sed; did you mean seed?"),
        (["eval"], "rayqd eval needs a run's directory or one of its checkpoints: rayqd eval runs/quickstart"),
        (["eval", "no/such"], "no/such: does not exist, nor does the folder no"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(argv, line, capsys):
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"rayqd: error: {line}\n")


def test_distill_gets_the_resolved_config(run_module):
    assert main(["distill", "--seed", "7"]) == 0
    ((config,),) = run_module.calls
    assert config.seed == 7


@pytest.mark.parametrize(("flags", "name"), [([], "quantize"), (["--name", "distill"], "distill")])
def test_quantize_has_a_directory_of_its_own_unless_it_is_named(flags, name, run_module):
    assert main(["quantize", *flags]) == 0
    ((config,),) = run_module.calls
    assert config.name == name


@pytest.mark.parametrize("part", [".", "checkpoints/step-000100", "export"])
def test_eval_starts_from_the_settings_of_the_run(part, run_module, tmp_path):
    (tmp_path / "config.toml").write_text("seed = 5\neval.num_rows = 9")
    (tmp_path / part).mkdir(parents=True, exist_ok=True)
    assert main(["eval", str(tmp_path / part), "--eval.num-rows", "3"]) == 0
    ((path, config),) = run_module.calls
    assert (path, config.seed, config.eval.num_rows) == (tmp_path / part, 5, 3)


def test_an_error_of_several_lines_is_printed_as_one(run_module, capsys):
    def fail(config, began):
        raise ModelError("no\n  such model")

    run_module.distill = fail
    assert main(["distill"]) == 1
    assert capsys.readouterr().err == "rayqd: error: no such model\n"


def test_an_interrupt_is_one_line_and_exit_code_130(run_module, capsys):
    def interrupt(config, began):
        raise KeyboardInterrupt

    run_module.distill = interrupt
    assert main(["distill"]) == 130
    assert capsys.readouterr().err == "rayqd: stopped; the same command goes on from the last checkpoint\n"


def test_sigterm_is_as_orderly_an_end_as_an_interrupt(run_module, capsys):
    run_module.distill = lambda config, began: signal.raise_signal(signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["distill"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "rayqd: stopped; the same command goes on from the last checkpoint\n"


def test_a_reader_that_leaves_early_causes_no_complaint():
    command = f"{sys.executable} -m rayqd distill --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
