"""`rayqd export` as it is typed: switches of its own beside settings, and one line at each mistake."""

import sys
import types
from pathlib import Path

import pytest

from rayqd.cli import main
from rayqd.cli.options import Option, take_options
from rayqd.errors import ConfigError


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.toml").write_text("seed = 5")
    return directory


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for rayqd.commands.export that records its calls and returns 1."""
    found: list[tuple] = []

    def export_run(run_dir, config, **options):
        found.append((run_dir, config, options))
        return 1

    monkeypatch.setitem(sys.modules, "rayqd.commands.export", types.SimpleNamespace(export_run=export_run))
    return found


def test_switches_may_stand_anywhere_and_settings_beside_them(calls, run_dir):
    argv = ["export", "--verify", str(run_dir), "--eval.num-rows", "3", "--as=gguf", "--out", "a/b", "--overwrite"]
    assert main(argv) == 1
    ((path, config, options),) = calls
    assert (path, config.seed, config.eval.num_rows) == (run_dir, 5, 3)
    own = {"out": Path("a/b"), "kind_name": "gguf", "verify": True, "overwrite": True}
    assert options == {**own, "push_to": None, "is_public": False}


def test_where_it_is_uploaded_to_is_passed_on(calls, run_dir):
    main(["export", str(run_dir), "--push", "me/mine", "--public"])
    assert (calls[0][2]["push_to"], calls[0][2]["is_public"]) == ("me/mine", True)


def test_without_switches_nothing_is_asked(calls, run_dir):
    main(["export", str(run_dir)])
    nothing = {"out": None, "kind_name": None, "verify": False, "overwrite": False}
    assert calls[0][2] == {**nothing, "push_to": None, "is_public": False}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--verfy"], "unknown flag --verfy; did you mean --verify?"),
        (["--over-write"], "unknown flag --over-write; did you mean --overwrite?"),
        (["--verify=yes"], "flag --verify=yes: --verify takes no value"),
        (["--out"], "flag --out: needs a value: --out DIR"),
        (["--as", "--verify"], "flag --as: needs a value: --as KIND"),
        (["--sed", "1"], "flag --sed=1: unknown setting sed; did you mean seed?"),
        (["--eval.num_row", "1"], "flag --eval.num_row=1: unknown setting eval.num_row; did you mean eval.num_rows?"),
        (["more"], 'unexpected argument "more"; give settings as @file.toml or --section.field VALUE'),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(words, line, calls, run_dir, capsys):
    assert main(["export", str(run_dir), *words]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"rayqd: error: {line}\n")
    assert calls == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "rayqd export needs a run's directory: rayqd export runs/quickstart"),
        (["no/such"], "no/such: does not exist, nor does the folder no"),
    ],
)
def test_a_run_that_is_missing_is_one_line(words, line, capsys):
    assert main(["export", *words]) == 2
    assert capsys.readouterr().err == f"rayqd: error: {line}\n"


def test_a_kind_that_there_is_not_is_one_line_with_the_nearest(run_dir, capsys):
    assert main(["export", str(run_dir), "--as", "ggfu"]) == 2
    line = "flag --as=ggfu: must be one of compressed-tensors, bitsandbytes, gguf, gptq, awq, mlx; did you mean gguf?"
    assert capsys.readouterr().err == f"rayqd: error: {line}\n"


def test_options_leave_settings_and_their_values_where_they_are():
    out = Option(name="out", value="DIR", text="")
    values, others = take_options(["--seed", "3", "--out", "x", "--no-overwrite"], [out])
    assert (values, others) == ({"out": "x"}, ["--seed", "3", "--no-overwrite"])


def test_help_explains_the_switches(capsys):
    assert main(["export", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: rayqd export RUN_DIR [--out DIR] [--as KIND] [--verify] [--overwrite]" in out
    for switch in ("--as KIND", "--out DIR", "--verify", "--overwrite", "--push HUB-ID", "--public"):
        assert f"\n{switch} " in out


def test_switches_need_no_value_where_none_is_taken():
    with pytest.raises(ConfigError, match="takes no value"):
        take_options(["--verify="], [Option(name="verify", text="")])
