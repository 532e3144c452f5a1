"""The command line: `rayqd COMMAND [@file.toml ...] [--section.field VALUE ...]`, one file a command.

What a command needs is imported when it runs, so that help and a mistyped setting answer at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from rayqd.cli.command import Command
from rayqd.cli.help_text import command_help, main_help, topic_help
from rayqd.cli.version import version_line
from rayqd.config.hints import nearest_word
from rayqd.config.other_tools import COMMANDS as OTHER_COMMANDS
from rayqd.errors import ConfigError, RayqdError

MODULES = (  # of this package, in the order of the help
    "distill",
    "quantize",
    "sweep",
    "data",
    "generate",
    "evaluate",
    "export",
    "runs",
    "watch",
    "compare",
    "bench",
    "models",
    "dashboard",
    "cluster",
    "config",
    "doctor",
    "completion",
    "version",
    "help",
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


def show_help(topics: Sequence[str] = ()) -> int:
    """Print the help of a command, a section or a setting; of everything without `topics`. Returns the exit code."""
    if not topics:
        print(main_help(COMMANDS.values()))
        return 0
    if topics[0] not in COMMANDS and len(topics) == 1 and (text := topic_help(topics[0])):
        print(text)
        return 0
    command = _command(topics[0])
    print(topic_help(topics[1], command, required=True) if len(topics) > 1 else command_help(command))
    return 0


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        return show_help(words[1:2])
    if words[0] in ("--version", "-V"):
        print(version_line())
        return 0
    command = _command(words[0])
    asked = next((i for i, word in enumerate(words) if word in ("-h", "--help")), None)
    if asked is not None:
        topics = [word for word in words[asked + 1 :] if not word.startswith("@")][:1]
        return show_help([command.name, *topics])
    if command.name == "help":
        words = [word.lstrip("-") for word in words]  # of a flag, too, help may be asked
    return _run(command, words[1:])


def _run(command: Command, words: list[str]) -> int:
    given = command.parse(words)
    if not command.when_stopped:
        return command.run(given)
    for number in (signal.SIGTERM, signal.SIGHUP):  # what stops a job is an orderly end, as Ctrl-C is
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        return command.run(given)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be what went away
            print(f"rayqd: stopped; {command.when_stopped}", file=sys.stderr)
        return 130


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    if name.startswith(("@", "-")) or name.endswith(".toml"):
        file = name if name.startswith(("@", "-")) else f"@{name}"
        raise ConfigError(f'"{name}" stands where the command belongs: rayqd distill {file}')
    near = OTHER_COMMANDS.get(name.lower().replace("-", "_")) or nearest_word(name, COMMANDS)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(COMMANDS)}"
    raise ConfigError(f'unknown command "{name}"; {hint}')
