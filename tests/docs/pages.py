"""The code blocks of the documentation, and the rayqd commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

from rayqd.cli import COMMANDS
from rayqd.config.arguments import Arguments
from rayqd.config.comparison import comparison_of
from rayqd.config.load import config_of
from rayqd.config.source_list import find_setting
from rayqd.config.sweep import sweep_of
from rayqd.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKERS = (
    "needs a GPU", "needs a cluster", "needs a cloud", "needs a network", "needs another program", "minutes",
)  # fmt: skip

_SHELLS = ("bash", "sh", "shell", "console")
_BEFORE_A_COMMAND = {"do", "then", "else", "!", "time", "nohup", "exec", "env", "sudo", "$"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced code block."""

    page: str
    line: int  # of its fence, from 1
    language: str
    mark: str  # the marker that it carries, or ""
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    fences = (token for token in MarkdownIt().parse(page.read_text()) if token.type == "fence")
    return tuple(_block(page, token.info, token.content, token.map[0] + 1 if token.map else 0) for token in fences)


def _block(page: Path, info: str, text: str, line: int) -> Block:
    """The marker stands after the language, or in a comment that is the block's first line."""
    language, _, rest = info.strip().partition(" ")
    first = text.partition("\n")[0]
    said = f"{rest} {first if first.startswith('#') else ''}"
    mark = next((marker for marker in MARKERS if marker in said), "")
    return Block(page=page.name, line=line, language=language, mark=mark, text=text)


def settings_files(page: Path) -> dict[str, str]:
    """The files that a page gives its reader: TOML blocks whose first line is `# name.toml`."""
    found = ((re.match(r"# ([\w./-]+\.toml)\b", block.text), block) for block in blocks(page))
    return {match[1]: block.text for match, block in found if match and block.language == "toml"}


def rayqd_commands(block: Block) -> list[list[str]]:
    """The words after `rayqd` of every command in a block of a shell, or of text."""
    if block.language not in (*_SHELLS, "", "text"):
        return []
    text = re.sub(r"\\\n\s*", " ", block.text)
    text = re.sub(r"<<-?\s*'?(\w+)'?(.*)\n.*?\n\s*\1\n", r"\2\n", text, flags=re.DOTALL)  # what is fed to a command
    lines = [*text.splitlines(), *re.findall(r"\$\((rayqd [^()]*)\)", text)]
    return [words for line in lines if "rayqd" in line for words in _commands_of(line, block.language in _SHELLS)]


def _commands_of(line: str, of_shell: bool) -> Iterator[list[str]]:
    if not of_shell and not re.match(r"\s*(\$ )?(\S*/)?rayqd ", line):
        return
    command: list[str] = []
    for word in [*_words(line), ";"]:
        if set(word) <= set("();<>|&"):
            yield from _rayqd_words(command)
            command = []
        else:
            command.append(word)


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def _rayqd_words(command: Sequence[str]) -> Iterator[list[str]]:
    """What follows `rayqd` where it is the command, or is what another one starts (`... -- rayqd distill`)."""
    words = list(command)
    while words and (words[0] in _BEFORE_A_COMMAND or re.match(r"\w+=", words[0])):
        words.pop(0)
    for i, word in enumerate(words):
        if word != "rayqd" and not word.endswith("/rayqd"):
            continue
        if i == 0 or words[i - 1] in ("-m", "--") or words[i + 1 : i + 2] in [[name] for name in COMMANDS]:
            yield words[i + 1 :]
            return


def check_command(words: Sequence[str]) -> None:
    """ConfigError where `rayqd` would refuse the words at once: command, flags, settings, files, number of operands."""
    if not words or words[0] in ("-h", "--help", "--version"):
        return
    if words[0] not in COMMANDS:
        raise ConfigError(f"there is no command {words[0]}")
    if "--help" in words:
        return
    arguments = COMMANDS[words[0]].parse(words[1:]).arguments
    if words[0] == "sweep":  # which has settings of its own
        sweep_of(arguments)
    elif words[0] == "compare" and arguments.files:
        comparison_of(arguments)
    else:
        config_of(_without_variables(arguments))


def _without_variables(arguments: Arguments) -> Arguments:
    """A shell variable stands for anything; the setting that it is given to must be there."""
    for flag in arguments.flags:
        if not find_setting(flag.key):
            raise ConfigError(f"flag --{flag.key}: there is no such setting")
    return replace(
        arguments,
        files=tuple(file for file in arguments.files if "$" not in str(file)),
        flags=tuple(flag for flag in arguments.flags if "$" not in flag.text),
    )
