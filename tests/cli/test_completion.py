"""`rayqd completion`: its scripts in the shells themselves, driven by the Tab key."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from shells import Terminal

from rayqd.cli import COMMANDS, main
from rayqd.config.settings import settings

ROOT = Path(__file__).parents[2]
TAB = b"\t"
ALL = b"\x1b*"  # in bash and in zsh as it is set up here: puts every completion on the line
SHELLS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-i"]}
ZSH_SETUP = """unset zle_bracketed_paste; autoload -U compinit; compinit -u -D
zle -C all complete-word _generic; bindkey '^[*' all
zstyle ':completion:all::::' completer _all_matches _complete; zstyle ':completion:all:*' insert yes; """
TELL = "rayqd() { printf 'ANS''WER'; printf '%s|' \"$@\"; printf 'END\\n'; }"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the user stands: two files of settings, a run, and the scripts."""
    directory = tmp_path_factory.mktemp("directory")
    for name in ("configs/a.toml", "configs/b.toml", "configs/notes.txt", "runs/one/config.toml", ".zshrc"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


def written(shell: str, directory: Path) -> Path:
    """The script for `shell`, in a file."""
    script = directory / f".completion.{shell}"
    with script.open("w") as stream:
        subprocess.run([sys.executable, "-m", "rayqd", "completion", shell], stdout=stream, cwd=ROOT, check=True)
    return script


@pytest.fixture(scope="module", params=SHELLS)
def terminal(request: pytest.FixtureRequest, directory: Path) -> Iterator[Terminal]:
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    script = written(shell, directory)
    setup = (ZSH_SETUP if shell == "zsh" else "") + f"source {script}; {TELL}"
    terminal = Terminal(SHELLS[shell], directory, setup)
    yield terminal
    terminal.close()


@pytest.mark.parametrize(
    ("typed", "arguments"),
    [
        (b"rayqd dis" + TAB, ["distill"]),
        (b"rayqd compl" + TAB + b"ba" + TAB, ["completion", "bash"]),
        (b"rayqd completion " + ALL, ["completion", "bash", "fish", "zsh"]),
        (b"rayqd distill @configs/a" + TAB, ["distill", "@configs/a.toml"]),
        (b"rayqd distill @configs/" + ALL, ["distill", "@configs/a.toml", "@configs/b.toml"]),
        (b"rayqd distill @ configs/b" + TAB, ["distill", "@", "configs/b.toml"]),
        (b"rayqd distill " + ALL, ["distill", "@configs/a.toml", "@configs/b.toml"]),
        (b"rayqd config --quant.fo" + TAB + b" nv" + TAB, ["config", "--quant.format", "nvfp4"]),
        (b"rayqd config --quant.format=nv" + TAB, ["config", "--quant.format=nvfp4"]),
        (b"rayqd config --quant.group-s" + TAB + b" 32", ["config", "--quant.group_size", "32"]),
        (b"rayqd config --quant.format " + ALL, ["config", "--quant.format", "fp4", "int4", "nf4", "nvfp4"]),
        (b"rayqd config --ray.dashboard " + ALL, ["config", "--ray.dashboard", "false", "true"]),
        (b"rayqd config --no-ray" + TAB, ["config", "--no-ray.dashboard"]),
        (b"rayqd export runs/o" + TAB + b" --ver" + TAB, ["export", "runs/one", "--verify"]),
        (b"rayqd export runs/one --out ru" + TAB, ["export", "runs/one", "--out", "runs"]),
        (b"rayqd bench ste" + TAB + b" --sh" + TAB + b" x", ["bench", "step", "--shape", "x"]),
        (b"rayqd sweep --sweep.sea" + TAB + b" op" + TAB, ["sweep", "--sweep.search", "optuna"]),
        (b"rayqd runs --j" + TAB, ["runs", "--json"]),
        (b"rayqd runs --s" + TAB, ["runs", "--s"]),
        (b"true && X=1 rayqd conf" + TAB, ["config"]),
    ],
)
def test_tab_completes(typed: bytes, arguments: list[str], terminal: Terminal) -> None:
    assert [argument.rstrip("/") for argument in terminal.arguments(typed)] == arguments


def test_every_command_is_offered(terminal: Terminal) -> None:
    offered = terminal.arguments(b"rayqd " + ALL)
    assert set(COMMANDS) <= set(offered) <= {*COMMANDS, "--help", "--version"}


def test_every_setting_is_offered(terminal: Terminal) -> None:
    command, *offered = terminal.arguments(b"rayqd distill --" + ALL)
    switched_off = {f"--no-{key}" for key, setting in settings().items() if setting.kind == "boolean"}
    own = {f"--{option.name}" for option in COMMANDS["distill"].options} | {"--help"}
    assert (command, set(offered)) == ("distill", {f"--{key}" for key in settings()} | switched_off | own)


@pytest.fixture(scope="module")
def fish_script(directory: Path) -> Path:
    return written("fish", directory)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("rayqd dis", ["distill"]),
        ("rayqd completion ", ["bash", "fish", "zsh"]),
        ("rayqd distill @configs/", ["@configs/a.toml", "@configs/b.toml"]),
        ("rayqd distill ", ["@configs/a.toml", "@configs/b.toml"]),
        ("rayqd config --quant.fo", ["--quant.format"]),
        ("rayqd config --quant.format nv", ["nvfp4"]),
        ("rayqd config --quant.format=nv", ["--quant.format=nvfp4"]),
        ("rayqd config --ray.dashboard ", ["false", "true"]),
        ("rayqd export runs/", ["runs/one/"]),
        ("rayqd export runs/one --ver", ["--verify"]),
        ("rayqd runs --", ["--help", "--json"]),
    ],
)
@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_completes(line: str, offered: list[str], fish_script: Path, directory: Path) -> None:
    command = ["fish", "--no-config", "-c", f"source {fish_script}; complete -C '{line}'"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    assert [each.split("\t")[0] for each in done.stdout.splitlines()] == offered


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "rayqd completion needs one of bash, zsh, fish: rayqd completion bash"),
        (["zhs"], 'rayqd completion needs one of bash, zsh, fish: got "zhs"; did you mean zsh?'),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    assert capsys.readouterr().err == f"rayqd: error: {line}\n"
