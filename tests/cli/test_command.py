"""One declaration of a command: what it takes, and what its help says of it."""

import re

import pytest

from rayqd.cli import COMMANDS
from rayqd.cli.command import Command
from rayqd.cli.help_text import command_help
from rayqd.cli.operands import Operand
from rayqd.cli.options import Option
from rayqd.errors import ConfigError

OUT = Option(name="out", value="DIR", text="where to")
FORCE = Option(name="force", text="even so")
KIND = Operand(name="big|small", needs="big or small", example="big", choices={"big": "a lot", "small": "a little"})
RUNS = Operand(name="RUN", needs="two runs", example="a b", text="a directory", least=2, most=None)


def command(*operands: Operand, takes_settings: bool = False) -> Command:
    return Command(
        name="try", text="try it", run=lambda given: 0, operands=operands, options=(OUT, FORCE),
        details="Nothing happens.", takes_settings=takes_settings,
    )  # fmt: skip


def test_options_operands_and_settings_are_sorted() -> None:
    words = ["small", "--force", "a", "--seed", "3", "b", "--out=x", "@c.toml"]
    given = command(KIND, RUNS, takes_settings=True).parse(words)
    assert given.operands == ("small", "a", "b")
    assert given.options == {"force": "true", "out": "x"}
    assert [(flag.key, flag.text) for flag in given.arguments.flags] == [("seed", "3")]
    assert [str(file) for file in given.arguments.files] == ["c.toml"]
    assert given.words == tuple(words)
    assert (str(given.path("out")), given.path("in")) == ("x", None)


@pytest.mark.parametrize(
    ("operands", "words", "line"),
    [
        ([KIND], [], "rayqd try needs big or small: rayqd try big"),
        ([KIND], ["smal"], 'rayqd try needs big or small: got "smal"; did you mean small?'),
        ([KIND], ["xyz"], 'rayqd try needs big or small: got "xyz"; write rayqd try big'),
        ([KIND], ["big", "b"], 'unexpected argument "b": rayqd try takes 1'),
        ([], ["b"], 'unexpected argument "b": rayqd try takes none'),
        ([KIND, RUNS], ["big", "a"], "rayqd try big needs two runs: rayqd try big a b"),
        ([RUNS], ["a", "b", "--seed"], 'unexpected argument "--seed": rayqd try takes no settings'),
    ],
)
def test_a_mistake_says_what_is_missing_or_too_much(operands: list[Operand], words: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        command(*operands).parse(words)


def test_the_last_operand_may_be_repeated_or_left_out() -> None:
    assert command(RUNS).parse(["a", "b", "c"]).operands == ("a", "b", "c")
    assert command(Operand(name="DIR", least=0)).parse([]).operands == ()


def test_help_is_made_of_the_declaration() -> None:
    assert (
        command_help(command(KIND, RUNS))
        == """\
usage: rayqd try big|small RUN RUN... [--out DIR] [--force]

try it

big         a lot
small       a little
RUN         a directory
--out DIR   where to
--force     even so

Nothing happens."""
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_what_it_alone_takes(name: str) -> None:
    declared = COMMANDS[name]
    assert declared.text
    assert all(option.text for option in declared.options)
    assert all(operand.needs and operand.example for operand in declared.operands if operand.least)
    assert all(operand.least == operand.most == 1 for operand in declared.operands[:-1])
    assert max(map(len, command_help(declared).split("\n\n", 1)[1].splitlines())) <= 120
