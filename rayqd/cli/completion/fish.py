"""Completion for fish, with what each word means beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayqd.cli.completion.words import DIRECTORIES, FILES, CommandWords, Option, Value

_HEAD = r"""# rayqd completion for fish: rayqd completion fish | source

function __rayqd_command # COMMAND...: whether one of them stands on the line
    set -l words (commandline -opc)
    test (count $words) -ge 2; and contains -- $words[2] $argv
end

function __rayqd_settings_files
    set -l word (commandline -ct)
    if string match -q -- '@*' $word
        for path in (string sub -s 2 -- $word)*
            test -d $path; and echo @$path/
            string match -q -- '*.toml' $path; and echo @$path
        end
    else if test -z "$word"
        for path in *.toml configs/*.toml
            echo @$path
        end
    end
end

complete -c rayqd -e
complete -c rayqd -f
"""


def fish_script(commands: Sequence[CommandWords], settings: Sequence[Option]) -> str:
    return _HEAD + "".join(f"complete -c rayqd {line}\n" for line in _lines(commands, settings))


def _lines(commands: Sequence[CommandWords], settings: Sequence[Option]) -> Iterator[str]:
    for command in commands:
        yield f"-n __fish_use_subcommand -a {command.name} -d {_quoted(command.text)}"
    for command in commands:
        condition = f"-n '__rayqd_command {command.name}'"
        if command.word != Value():
            yield f"{condition} {_value(command.word)}"
        for option in command.switches:
            yield f"{condition} {_option(option)}"
    with_settings = " ".join(command.name for command in commands if command.takes_settings)
    condition = f"-n '__rayqd_command {with_settings}'"
    yield f"{condition} -a '(__rayqd_settings_files)'"
    for option in settings:
        yield f"{condition} {_option(option)}"


def _option(option: Option) -> str:
    needed = "" if option.value is None else f" -r {_value(option.value)}"
    return f"-l {option.flag.removeprefix('--')}{needed} -d {_quoted(option.text)}"


def _value(value: Value) -> str:
    if value.paths == FILES:
        return "-F"
    if value.paths == DIRECTORIES:
        return "-f -a '(__fish_complete_directories)'"
    return f"-f -a {_quoted(' '.join(value.words))}" if value.words else "-f"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
