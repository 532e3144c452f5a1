"""The scripts of the shells: the templates beside this file, with the flags and commands in the places of %NAMES%."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files

from rayqd.cli.command import Command
from rayqd.cli.completion.flags import DIRECTORIES, FILES, Flag, Value, command_flags, operand_value, setting_flags


def script(shell: str, commands: Sequence[Command]) -> str:
    """Return what `eval` or `source` takes in `shell`: bash, zsh or fish."""
    text = files("rayqd.cli.completion").joinpath(f"rayqd.{shell}").read_text()
    for name, part in {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands).items():
        text = text.replace(f"%{name}%", part)
    return text


def _bash(commands: Sequence[Command]) -> Mapping[str, str]:
    flags = {c.name: " ".join(flag.name for flag in command_flags(c)) for c in commands}
    return _values(commands, lambda value: f'echo "{value.paths or " ".join(value.words)}"') | {
        "SWITCHES": _lines(f'{name}) echo "{names}" ;;' for name, names in flags.items()),
        "SETTINGS": " ".join(flag.name for flag in setting_flags()),
        "NAMES": " ".join(c.name for c in commands),
    }


def _zsh(commands: Sequence[Command]) -> Mapping[str, str]:
    flags = {c.name: " ".join(_describe(flag.name, flag.text) for flag in command_flags(c)) for c in commands}
    return _values(commands, _zsh_action) | {
        "SWITCHES": _lines(f"{name}) flags=({names}) ;;" for name, names in flags.items()),
        "SETTINGS": _lines(_describe(flag.name, flag.text) for flag in setting_flags()),
        "COMMANDS": _lines(_describe(c.name, c.text) for c in commands),
    }


def _values(commands: Sequence[Command], action: Callable[[Value], str]) -> dict[str, str]:
    """Return the parts that bash and zsh have alike; `action` says how a shell completes a value."""
    values = [(f"'{c.name} {flag.name}'", flag.value) for c in commands for flag in command_flags(c)]
    values += [(f"*' {flag.name}'", flag.value) for flag in setting_flags()]
    words = [(c.name, operand_value(c)) for c in commands]
    return {
        "VALUES": _lines(f"{patterns}) {action(value)} ;;" for value, patterns in _group_by_value(values)),
        "WORDS": _lines(f"{name}) {action(value)} ;;" for name, value in words if value != Value()),
        "WITHOUT_SETTINGS": "|".join(c.name for c in commands if not c.takes_settings),
    }


def _group_by_value(values: Sequence[tuple[str, Value | None]]) -> Iterator[tuple[Value, str]]:
    """Yield each value with the patterns of the flags that take it."""
    for value in dict.fromkeys(value for _, value in values if value):
        yield value, "|".join(pattern for pattern, other in values if other == value)


def _zsh_action(value: Value) -> str:
    if value.paths:
        return "_files -/" if value.paths == DIRECTORIES else "_files"
    return f"compadd -- {' '.join(value.words)}" if value.words else "_message value"


def _describe(word: str, text: str) -> str:
    quoted = text.replace("'", "'\\''").replace(":", r"\:")
    return f"'{word}:{quoted}'"


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(f"        {line}" for line in lines)


def _fish(commands: Sequence[Command]) -> Mapping[str, str]:
    return {"COMPLETIONS": "\n".join(f"complete -c rayqd {line}" for line in _fish_lines(commands))}


def _fish_lines(commands: Sequence[Command]) -> Iterator[str]:
    for command in commands:
        yield f"-n __fish_use_subcommand -a {command.name} -d {_quote_for_fish(command.text)}"
        condition = f"-n '__rayqd_command {command.name}'"
        if (value := operand_value(command)) != Value():
            yield f"{condition} {_fish_value(value)}"
        for flag in command_flags(command):
            yield f"{condition} {_fish_flag(flag)}"
    condition = f"-n '__rayqd_command {' '.join(command.name for command in commands if command.takes_settings)}'"
    yield f"{condition} -a '(__rayqd_settings_files)'"
    for flag in setting_flags():
        yield f"{condition} {_fish_flag(flag)}"


def _fish_flag(flag: Flag) -> str:
    needed = "" if flag.value is None else f" -r {_fish_value(flag.value)}"
    return f"-l {flag.name.removeprefix('--')}{needed} -d {_quote_for_fish(flag.text)}"


def _fish_value(value: Value) -> str:
    if value.paths:
        return "-F" if value.paths == FILES else "-f -a '(__fish_complete_directories)'"
    return f"-f -a {_quote_for_fish(' '.join(value.words))}" if value.words else "-f"


def _quote_for_fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
