"""The command line: `rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]`, one file a command.

What a command needs is imported when it runs, so that help and a mistyped setting answer at once.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from rayqd.cli import (
    bench,
    cluster,
    compare,
    completion,
    config,
    dashboard,
    distill,
    doctor,
    evaluate,
    export,
    generate,
    quantize,
    runs,
    sweep,
    watch,
)
from rayqd.cli.command import Command
from rayqd.config.help import settings_help
from rayqd.errors import ConfigError, RayqdError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. Every expected failure is one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except RayqdError as error:
        print(f"rayqd: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("rayqd: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away (`rayqd config | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"rayqd {_version()}")
        return 0
    command = _command(words[0])
    if {"-h", "--help"} & set(words[1:]):
        print(_command_help(command))
        return 0
    return command.run(words[1:])


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    if name.startswith(("@", "-")):
        raise ConfigError(f'"{name}" stands where the command belongs: rayqd distill {name}')
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    raise ConfigError(f'unknown command "{name}"; {hint}')


def _version() -> str:
    try:
        return version("rayqd")
    except PackageNotFoundError:
        return "(not installed: run `make setup`, or `pip install -e .`)"


def _help() -> str:
    lines = [f"  {command.name:12}{command.text}" for command in COMMANDS.values()]
    return "\n".join([HEADER, "Commands:", *lines, "", EXAMPLES])


def _command_help(command: Command) -> str:
    usage = f"rayqd {command.name} {command.operand}".rstrip()
    about = f"{command.text}\n{command.details}".rstrip()
    if not command.takes_settings:
        return f"usage: {usage}\n\n{about}"
    return f"usage: {usage} [@file.toml ...] [--section.field VALUE ...]\n\n{about}\n\n{SYNTAX}\n{settings_help()}"


HEADER = """\
usage: rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]

Distils a language model into its own INT4 self.
"""

EXAMPLES = """\
Examples:
  rayqd doctor                                    what this machine can run
  rayqd distill @configs/quickstart.toml          a real run, small enough for two CPU cores
  rayqd distill @a.toml @b.toml --learner.lr 1e-4 b.toml wins over a.toml, the flag over both
  rayqd quantize @a.toml --quant.method awq       a 4-bit model without training, in one process
  rayqd generate @a.toml --model teacher          the teacher's answers to the data's prompts, as a data set
  rayqd config @a.toml --quant.group-size 64      the settings that this comes to, as TOML
  rayqd watch quickstart                          a run, seen from another terminal
  rayqd compare quickstart other                  two runs side by side
  rayqd eval runs/quickstart                      how far the run's student is from its teacher
  rayqd export runs/quickstart --verify           whether its export is, bit for bit, what was trained
  rayqd cluster validate cluster.yaml @a.toml     where on a cluster the run's roles would land

`rayqd COMMAND --help` lists every setting."""

SYNTAX = """\
Settings come from TOML files and from flags; later files win over earlier ones, flags over files.
--section.field VALUE and --section.field=VALUE are alike, and so are group-size and group_size.
Lists: A,B or '["A", "B"]'. Settings that may be unset take "none". A switch alone turns on, --no- turns off."""

MODULES = (
    distill,
    quantize,
    sweep,
    generate,
    evaluate,
    export,
    runs,
    watch,
    compare,
    bench,
    dashboard,
    cluster,
    config,
    doctor,
    completion,
)
COMMANDS = {module.COMMAND.name: module.COMMAND for module in MODULES}
