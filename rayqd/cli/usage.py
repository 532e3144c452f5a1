"""What a command takes beside settings, read from its usage line: `RUN_DIR [--out DIR] [--verify]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayqd.cli.command import Command

_SWITCH = re.compile(r"\[--([\w-]+)(?: ([^\]]+))?\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A place on the command line, as the usage line calls it: `RUN_DIR`, `step|loss`."""

    name: str

    @property
    def choices(self) -> list[str]:
        """Every word that may stand there, if they can be listed."""
        return self.name.split("|") if "|" in self.name else []

    @property
    def is_directory(self) -> bool:
        return "DIR" in self.name or "RUN" in self.name

    @property
    def is_file(self) -> bool:
        return "FILE" in self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    words: tuple[Word, ...]  # what stands without a flag, in order
    num_required: int  # as many of them must be given
    is_open: bool  # the last may be given more than once
    switches: dict[str, Word]  # by name without dashes; a switch that takes no value has the word ""


def usage_of(command: Command) -> Usage:
    """`[...]` may be left out, `...` may be repeated, `a|b` is a choice; the rest names what belongs there."""
    switches = {name: Word(name=value) for name, value in _SWITCH.findall(command.operand)}
    plain = _SWITCH.sub(" ", command.operand).split()
    return Usage(
        words=tuple(Word(name=word.strip("[]").removesuffix("...")) for word in plain),
        num_required=sum(not word.startswith("[") for word in plain),
        is_open=bool(plain) and plain[-1].rstrip("]").endswith("..."),
        switches=switches,
    )
