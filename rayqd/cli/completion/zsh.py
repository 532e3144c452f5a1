"""Completion for zsh, with what each word means beside it: evaluated after compinit, or a file `_rayqd` in fpath."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rayqd.cli.completion.words import DIRECTORIES, CommandWords, Option, Value, filled

_SCRIPT = r"""#compdef rayqd
# rayqd completion for zsh: eval "$(rayqd completion zsh)", after compinit

_rayqd_value() { # FLAG COMMAND: completes what may stand after the flag; returns 2 where nothing may
    case "$2 $1" in
%VALUES%
        *) return 2 ;;
    esac
}

_rayqd_word() { # COMMAND: completes what it takes without a flag
    case $1 in
%WORDS%
        *) return 2 ;;
    esac
}

_rayqd_flags() { # COMMAND
    local -a flags settings
    case $1 in
%SWITCHES%
    esac
    settings=(
%SETTINGS%
    )
    _describe -o flag flags
    case $1 in
        %WITHOUT_SETTINGS%) ;;
        *) _describe -o setting settings -M 'm:{-_}={_-}' ;;
    esac
}

_rayqd_settings_file() {
    compset -P '@'
    _files -g '*.toml'
}

_rayqd() {
    local command=$words[2] previous=$words[CURRENT-1]
    local -a commands
    if ((CURRENT == 2)); then
        commands=(
%COMMANDS%
        )
        _describe command commands
    elif [[ $PREFIX == @* || $previous == @ ]]; then
        _rayqd_settings_file
    elif [[ $PREFIX == --*=* ]]; then
        local flag=${PREFIX%%=*}
        compset -P '*='
        _rayqd_value $flag $command
    elif [[ $PREFIX == -* ]]; then
        _rayqd_flags $command
    else
        _rayqd_value "$previous" $command
        (($? == 2)) || return 0
        _rayqd_word $command
        (($? == 2)) || return 0
        local -a files=(*.toml(N) configs/*.toml(N))
        compadd -P @ -- $files
    fi
}

if [[ $funcstack[1] == _rayqd ]]; then
    _rayqd "$@"
else
    compdef _rayqd rayqd
fi
"""


def zsh_script(commands: Sequence[CommandWords], settings: Sequence[Option]) -> str:
    values = [(f"'{c.name} {o.flag}'", o.value) for c in commands for o in c.switches if o.value]
    values += [(f"*' {o.flag}'", o.value) for o in settings if o.value]
    switches = (f"{c.name}) flags=({' '.join(_described(o.flag, o.text) for o in c.switches)}) ;;" for c in commands)
    parts = {
        "VALUES": _lines(8, (f"{pattern}) {_action(value)} ;;" for pattern, value in values)),
        "WORDS": _lines(8, (f"{c.name}) {_action(c.word)} ;;" for c in commands if c.word != Value())),
        "SWITCHES": _lines(8, switches),
        "WITHOUT_SETTINGS": "|".join(c.name for c in commands if not c.takes_settings),
        "SETTINGS": _lines(8, (_described(o.flag, o.text) for o in settings)),
        "COMMANDS": _lines(12, (_described(c.name, c.text) for c in commands)),
    }
    return filled(_SCRIPT, parts)


def _action(value: Value) -> str:
    if value.paths:
        return "_files -/" if value.paths == DIRECTORIES else "_files"
    return f"compadd -- {' '.join(value.words)}" if value.words else "_message value"


def _described(word: str, text: str) -> str:
    quoted = text.replace("'", "'\\''").replace(":", r"\:")
    return f"'{word}:{quoted}'"


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)
