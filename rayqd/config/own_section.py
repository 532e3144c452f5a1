"""Files of many runs: the settings that all of them share, and beside them a section of the command's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rayqd.config.arguments import Arguments, Flag, read_arguments
from rayqd.config.assignment import Assignment
from rayqd.config.hints import describe_unexpected
from rayqd.config.load import assignments, resolve
from rayqd.config.sections import Config
from rayqd.errors import ConfigError

OVER_ALL = 1 << 30  # the layer of what one of the runs has of its own: it is given after all files and flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What was given, taken apart."""

    own: tuple[Assignment, ...]  # of the section, from files
    own_flags: tuple[Flag, ...]  # of the section, not read yet
    common: tuple[Assignment, ...]
    config: Config  # of `common`


def read_files_and_flags(argv_parts: Sequence[str]) -> Arguments:
    """Return the arguments; raises ConfigError at one that is neither a file nor a flag."""
    arguments = read_arguments(argv_parts)
    if arguments.words:
        raise ConfigError(describe_unexpected(arguments.words[0]))
    return arguments


def take_apart(arguments: Arguments, is_own: Callable[[str], bool], name: str) -> Parts:
    """Separate the section, whose keys `is_own` knows, from the rest; without a name of its own it has `name`.

    Raises ConfigError at what the settings of all runs refuse.
    """
    own_flags = tuple(flag for flag in arguments.flags if is_own(flag.key))
    given = assignments(replace(arguments, flags=tuple(flag for flag in arguments.flags if not is_own(flag.key))))
    common = [each for each in given if not is_own(each.key)]
    if not any(each.key == "name" for each in common):
        common.append(Assignment(key="name", value=name, origin="name"))
    own = tuple(each for each in given if is_own(each.key))
    return Parts(own=own, own_flags=own_flags, common=tuple(common), config=resolve(common))
