"""The command line: `rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]`, one file a command.

What a command needs is imported when it runs, so that help and a mistyped setting answer at once.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from rayqd.cli.command import Command
from rayqd.cli.help import command_help, main_help
from rayqd.errors import ConfigError, RayqdError

MODULES = (  # of this package, in the order of the help
    "distill",
    "quantize",
    "sweep",
    "generate",
    "evaluate",
    "export",
    "runs",
    "watch",
    "compare",
    "bench",
    "dashboard",
    "cluster",
    "config",
    "doctor",
    "completion",
)
_DECLARED: list[Command] = [import_module(f"rayqd.cli.{name}").COMMAND for name in MODULES]
COMMANDS = {command.name: command for command in _DECLARED}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every expected failure is one line on stderr."""
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
        print(main_help(COMMANDS.values()))
        return 0
    if words[0] == "--version":
        print(f"rayqd {_version()}")
        return 0
    command = _command(words[0])
    if {"-h", "--help"} & set(words[1:]):
        print(command_help(command))
        return 0
    return _run(command, words[1:])


def _run(command: Command, words: list[str]) -> int:
    given = command.parse(words)
    if not command.when_stopped:
        return command.run(given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a job is an orderly end, as Ctrl-C is
    try:
        return command.run(given)
    except KeyboardInterrupt:
        print(f"rayqd: stopped; {command.when_stopped}", file=sys.stderr)
        return 130


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
