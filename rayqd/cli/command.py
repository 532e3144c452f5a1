"""What a command is: one declaration, of which the parsing, the help and the shells' completion are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayqd.cli.operands import Operand
from rayqd.cli.options import Option, take_options
from rayqd.config.arguments import Arguments, read_arguments
from rayqd.config.hints import describe_unexpected
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was given to a command."""

    words: tuple[str, ...]  # all of it, as written
    options: Mapping[str, str]  # by name without dashes; "true" for one that takes no value
    operands: tuple[str, ...]
    arguments: Arguments  # the settings

    def path(self, option: str) -> Path | None:
        """Return the value of an option as a path; None where it was not given."""
        return Path(self.options[option]) if option in self.options else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command as `rayqd.cli.NAME` declares it."""

    name: str
    text: str  # one line
    run: Callable[[Given], int]  # returns the exit code
    operands: tuple[Operand, ...] = ()  # of which only the last may be given more or less than once
    options: tuple[Option, ...] = ()
    details: str = ""  # more help
    takes_settings: bool = True
    file_replaces_operands: bool = False  # with @file.toml it takes none
    first_settings: tuple[str, ...] = ()  # those that matter most, with which the help begins
    when_stopped: str = ""  # how to go on after Ctrl-C; with it SIGTERM, too, is an orderly end

    @property
    def usage(self) -> str:
        """The whole line, without `usage:`."""
        own = [*(operand.usage for operand in self.operands), *(f"[{option.usage}]" for option in self.options)]
        settings = ["[@file.toml ...]", "[--section.field VALUE ...]"] if self.takes_settings else []
        return " ".join(["rayqd", self.name, *own, *settings])

    def parse(self, words: Sequence[str]) -> Given:
        """Sort the words after the command. Raises ConfigError at one that it does not take, or that is missing."""
        options, others = take_options(words, self.options)
        arguments = read_arguments(others) if self.takes_settings else self._without_settings(others)
        if self.file_replaces_operands and arguments.files:
            self._refuse_operands(arguments.words)
        else:
            self._check_operands(arguments.words)
        return Given(words=tuple(words), options=options, operands=arguments.words, arguments=arguments)

    def _without_settings(self, words: Sequence[str]) -> Arguments:
        for word in words:
            if word.startswith(("-", "@")):
                raise ConfigError(f'unexpected argument "{word}": rayqd {self.name} takes no settings')
        return Arguments(files=(), flags=(), words=tuple(words))

    def _refuse_operands(self, words: Sequence[str]) -> None:
        if words:
            raise ConfigError(f'unexpected argument "{words[0]}": rayqd {self.name} takes @file.toml in place of it')

    def _check_operands(self, words: Sequence[str]) -> None:
        start = 0
        for operand in self.operands:
            taken = words[start:][: operand.most]
            operand.check(" ".join(["rayqd", self.name, *words[:start]]), taken)
            start += len(taken)
        if start < len(words):
            takes = f'unexpected argument "{words[start]}": rayqd {self.name} takes {start or "none"}'
            raise ConfigError(describe_unexpected(words[start]) if self.takes_settings else takes)
