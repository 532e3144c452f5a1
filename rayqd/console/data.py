"""What a run reads, in the terminal: the first row of a run, and all that `rayqd data` tells."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from rayqd.config.sections.models import OTHERS
from rayqd.console.say import say
from rayqd.console.tables import Column, print_table
from rayqd.runs.data_file import Lengths, Piece, RunData, SeenRow, SourceRows, elide

_MOST_PARTS = 6  # of the first row: a conversation may have a hundred turns
_MOST_CHARACTERS = 4000  # of a piece, where rows are shown whole
_BAR_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_OPEN, _CLOSE = "⟦", "⟧"  # around what is trained on, where there are no colours
_COLUMNS = (
    Column(heading="", is_label=True),
    Column(heading="rows"),
    Column(heading="used"),
    Column(heading="left\nout"),
    Column(heading="not\nneeded", rank=2),
    Column(heading="dupli-\ncates", rank=1),
)
_SHARE_COLUMNS = (Column(heading="share"), Column(heading="epochs"))
_TRAINED = "trained on"  # what a command does that goes through the data in steps


def first_row_lines(data: RunData, width: int) -> Iterator[str]:
    """Yield the first row that a run trains on in a few lines, each part of it in at most two of `width` characters."""
    row = data.first[0]
    if data.sources and data.use == _TRAINED:
        yield "; ".join(f"{each.label}: {each.share:.1%} of the sequences" for each in data.sources)
    yield from teacher_lines(data)
    yield f"first row: {row.row:,} of {row.source or data.training.name}, {row.describe(data.use)}"
    parts = [(is_trained, _join(pieces)) for is_trained, pieces in groupby(row.pieces, key=lambda p: p.is_trained)]
    for number, (is_trained, text) in enumerate(parts):
        if _MOST_PARTS // 2 <= number < len(parts) - _MOST_PARTS // 2:
            if number == _MOST_PARTS // 2:
                yield f"  {'':9} … {len(parts) - _MOST_PARTS:,} more parts …"
            continue
        label = "answer" if is_trained else "prompt" if number == 0 else "context"
        yield f"  {label:9} {_shorten(visible(text), 2 * (width - 12))}"
    yield f"  {_describe_end(row, data.ends)}"


def teacher_lines(data: RunData) -> Iterator[str]:
    """Yield who teaches which rows, a line for each of several teachers: `org/math (math): 120 rows, 8 held out`."""
    for each in data.teachers:
        values = ", ".join("all others" if value == OTHERS else visible(value) for value in each.values)
        yield (
            f"teacher   {visible(each.name)} ({values}): {each.num_training:,} rows to train on, "
            f"{each.num_heldout:,} held out"
        )


def print_data(console: Console, data: RunData, *, max_length: int, num_steps: int, batch_size: int) -> None:
    """Print counts, what was left out and why, lengths, epochs, and rows as the model sees them."""
    training = _cells("training", data.training)
    if data.sources:
        table = [_with_share(training), *(_with_share(_cells(each.label, each), each) for each in data.sources)]
        print_table(console, [*_COLUMNS, *_SHARE_COLUMNS], [*table, _with_share(_cells("held out", data.heldout))])
    else:
        print_table(console, _COLUMNS, [training, _cells("held out", data.heldout)])
    several = [(each.label, each) for each in data.sources]
    for title, rows in (*(several or [("training", data.training)]), ("held out", data.heldout)):
        say(console, f"{title:9} {visible(rows.name)}")
        for line in _left_out_lines(rows):
            say(console, line)
    for line in teacher_lines(data):
        say(console, line)
    for line in _length_lines(data.lengths, max_length, console.width):
        say(console, line)
    say(console, epochs_line(data, num_steps, batch_size))
    if data.first:
        _print_rows(console, data)


def epochs_line(data: RunData, num_steps: int, batch_size: int) -> str:
    """Format `epochs    128 steps of 4 sequences are about 1.97 epochs; an epoch is about 65 steps`."""
    about = "about " if data.training.num_not_needed else ""
    if data.sources:
        of_steps = f"{num_steps:,} steps of {batch_size:,} sequence{'s' if batch_size > 1 else ''}"
        return f"epochs    {of_steps} are {about}{data.epochs}"
    epochs = num_steps / data.steps_per_epoch if data.steps_per_epoch else 0.0
    sequences = f"{batch_size:,} sequence{'s' if batch_size > 1 else ''}"
    epoch = f"{data.steps_per_epoch:,.{0 if data.steps_per_epoch >= 10 else 1}f}"
    return (
        f"epochs    {num_steps:,} steps of {sequences} are {about}{epochs:.2f} epochs; an epoch is {about}{epoch} steps"
    )


def visible(text: str, *, in_a_line: bool = True) -> str:
    """Return `text` with what a terminal would obey, or not show, written out; `in_a_line` line breaks too."""
    return "".join(_visible(character, in_a_line=in_a_line) for character in text)


def _visible(character: str, *, in_a_line: bool) -> str:
    if character == "\n":
        return "⏎" if in_a_line else "\n"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d":
        return character.encode("unicode_escape", "backslashreplace").decode()
    return character


def _shorten(text: str, most: int) -> str:
    (piece,) = elide([Piece(text=text, is_trained=False, is_special=False)], max(most - 24, 40))
    return text if len(text) <= most else piece.text


def _join(pieces: Iterator[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _describe_end(row: SeenRow, ends: Sequence[str]) -> str:
    stops = " or ".join(ends)
    if row.writer:
        return f"{row.writer} stops at {stops}"
    return f"ends with {row.end}" if row.end else f"nothing ends it: it was cut, or is plain text ({stops} would)"


def _cells(title: str, rows: SourceRows) -> list[str]:
    numbers = (rows.num_rows, rows.num_used, rows.num_left_out, rows.num_not_needed, rows.num_duplicates)
    return [title, *(f"{number:,}" for number in numbers)]


def _with_share(cells: list[str], rows: SourceRows | None = None) -> list[str]:
    return [*cells, f"{rows.share:.1%}", f"{rows.num_epochs:,.2f}"] if rows else [*cells, "", ""]


def _left_out_lines(rows: SourceRows) -> Iterator[str]:
    for reason in rows.left_out:
        yield f"  {reason.num_rows:,} {reason.reason}"
        yield from (f"    {visible(each)}" for each in reason.first)
        if reason.num_rows > len(reason.first):
            yield f"    and {reason.num_rows - len(reason.first):,} more"


def _length_lines(lengths: Lengths, max_length: int, width: int) -> Iterator[str]:
    yield (
        f"tokens    {lengths.mean:,.0f} a row in the mean, half have at most {lengths.median:,.0f}, 95 % at most "
        f"{lengths.high:,}, the longest {lengths.longest:,} (data.max_length={max_length:,})"
    )
    yield f"trained   {lengths.trained_share:.0%} of the data's own tokens"
    most = max(each.num_rows for each in lengths.bins)
    names = [each.name for each in lengths.bins]
    counts = [f"{each.num_rows:,}" for each in lengths.bins]
    name_width, count_width = max(map(len, names)), max(map(len, counts))
    room = max(8, min(_BAR_WIDTH, width - 12 - name_width - count_width))
    for name, count, each in zip(names, counts, lengths.bins, strict=True):
        bar = _bar(each.num_rows / most, room)
        yield f"{'':9} {name:>{name_width}} {count:>{count_width}} {bar}".rstrip()


def _bar(share: float, width: int) -> str:
    eighths = max(round(share * width * 8), 1 if share else 0)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _print_rows(console: Console, data: RunData) -> None:
    has_colours = console.color_system is not None and not console.no_color
    how = "what is trained on is green" if has_colours else f"what is trained on stands in {_OPEN}{_CLOSE}"
    say(console, f"rows as the model sees them, special tokens included; {how}")
    for row in data.first:
        console.print()
        of = f" of {row.source}" if row.source else ""
        say(console, f"row {row.row:,}{of}: {row.describe(data.use)}")
        pieces = elide(row.pieces, _MOST_CHARACTERS)
        console.print(_coloured(pieces) if has_colours else Text(_marked(pieces)), soft_wrap=True, highlight=False)
        say(console, _describe_end(row, data.ends))


def _coloured(pieces: Sequence[Piece]) -> Text:
    text = Text()
    for piece in pieces:
        style = f"{'green' if piece.is_trained else 'default'}{' dim' if piece.is_special else ''}"
        text.append(visible(piece.text, in_a_line=False), style=style)
    return text


def _marked(pieces: Sequence[Piece]) -> str:
    parts = groupby(pieces, key=lambda piece: piece.is_trained)
    texts = ((is_trained, visible(_join(of_kind), in_a_line=False)) for is_trained, of_kind in parts)
    return "".join(f"{_OPEN}{text}{_CLOSE}" if is_trained else text for is_trained, text in texts)
