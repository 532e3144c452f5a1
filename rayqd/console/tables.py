"""Tables that never cut a number: where a terminal is narrow, labels fold and the lesser columns go."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayqd.console.say import say

_LEAST_LABEL = 9  # characters of a label's line
_MOST_WORD = 14  # characters of a heading's word that are kept together

Cells: TypeAlias = "Sequence[str | Text]"  # of a row; an empty sequence draws a line


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a table."""

    heading: str
    rank: int = 0  # the highest goes first where there is no room; 0 stays
    is_label: bool = False  # words, which may fold; anything else is shown whole
    is_words: bool = False  # words that stay whole: they stand on the left, as labels do, and numbers on the right


def print_table(
    console: Console, columns: Sequence[Column], rows: Sequence[Cells], *, title: str = "", boxed: bool = True
) -> None:
    """Print `rows`, with as many of the `columns` as the terminal has room for, and name the others."""
    shown, in_box = _choose(columns, rows, console.width, boxed)
    console.print(_build([columns[i] for i in shown], _pick(rows, shown), console.width, title, in_box))
    if left_out := [" ".join(c.heading.split()) for i, c in enumerate(columns) if i not in shown]:
        say(console, f"not shown in {console.width} columns: {', '.join(filter(None, left_out))}")


def _choose(columns: Sequence[Column], rows: Sequence[Cells], width: int, boxed: bool) -> tuple[list[int], bool]:
    """Return the columns that fit, and whether the box around them does."""
    shown = list(range(len(columns)))
    while True:
        chosen, cells = [columns[i] for i in shown], _pick(rows, shown)
        for in_box in dict.fromkeys((boxed, False)):
            if sum(_least(chosen, cells)) + _frame(len(chosen), in_box) <= width:
                return shown, in_box
        last = max(shown, key=lambda i: columns[i].rank)
        if columns[last].rank == 0:
            return shown, False
        shown.remove(last)


def _build(columns: Sequence[Column], rows: Sequence[Cells], width: int, title: str, in_box: bool) -> Table:
    table = Table(title=title or None, title_justify="left")
    if not in_box:
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, size in zip(columns, _sizes(columns, rows, width, in_box), strict=True):
        table.add_column(
            _fold(column.heading, size),
            justify="left" if column.is_label or column.is_words else "right",
            no_wrap=not column.is_label,
            overflow="fold",
            width=size,
        )
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    return table


def _sizes(columns: Sequence[Column], rows: Sequence[Cells], width: int, in_box: bool) -> list[int]:
    """Give every column what it needs at least, and what is left of the width to those that need more, in order."""
    sizes = _least(columns, rows)
    left = max(0, width - sum(sizes) - _frame(len(columns), in_box))
    for i, wanted in enumerate(_natural(columns, rows)):
        more = min(left, wanted - sizes[i])
        sizes[i] += more
        left -= more
    return sizes


def _least(columns: Sequence[Column], rows: Sequence[Cells]) -> list[int]:
    """Return the width below which a column is cut: of labels a few letters, of others the longest cell."""
    cells = _longest(rows, len(columns))
    words = [min(_MOST_WORD, max(map(len, column.heading.split()), default=1)) for column in columns]
    natural = _natural(columns, rows)
    return [
        min(natural[i], max(_LEAST_LABEL, words[i])) if column.is_label else max(cells[i], words[i])
        for i, column in enumerate(columns)
    ]


def _natural(columns: Sequence[Column], rows: Sequence[Cells]) -> list[int]:
    headings = [max(map(len, column.heading.split("\n"))) for column in columns]
    return [max(pair) for pair in zip(headings, _longest(rows, len(columns)), strict=True)]


def _longest(rows: Sequence[Cells], num_columns: int) -> list[int]:
    return [max((_length(row[i]) for row in rows if row), default=1) for i in range(num_columns)]


def _length(cell: str | Text) -> int:
    return (cell if isinstance(cell, Text) else Text.from_markup(cell)).cell_len


def _frame(num_columns: int, in_box: bool) -> int:
    """Return the characters beside the cells: a line and two spaces a column, or two spaces between."""
    return 3 * num_columns + 1 if in_box else 2 * (num_columns - 1)


def _fold(heading: str, width: int) -> str:
    if max(map(len, heading.split("\n"))) <= width:
        return heading
    return "\n".join(textwrap.wrap(heading, width))


def _pick(rows: Sequence[Cells], shown: Sequence[int]) -> list[Cells]:
    return [[row[i] for i in shown] if row else row for row in rows]
