"""`data.json`: what a run reads, what was left out of it, and its first rows as the model sees them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from rayqd.errors import RunError
from rayqd.files import write_text
from rayqd.runs.paths import AUDIT, CHECKPOINTS, DATA, START

_BEGUN = (START, CHECKPOINTS, AUDIT)  # what a run leaves whose rows were read


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Neighbouring tokens of one kind, as text."""

    text: str
    is_trained: bool
    is_special: bool  # tokens that stand for no text: `<|im_end|>`


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRow:
    """A row as the model sees it."""

    row: int  # position in its source
    num_tokens: int
    num_trained: int  # of them
    pieces: tuple[Piece, ...]  # all of it, in order; without the completion where somebody else writes one
    end: str  # the token that ends it; "" where the text just stops
    source: str = ""  # the name of its source, where there are several
    writer: str = ""  # who writes what is trained on: "the student", "the teacher"; "" where it is the data's own

    def describe(self, use: str) -> str:
        """Format `211 tokens, 148 of them trained on`, for a `use` of "trained on"."""
        rest = f"and what {self.writer} writes after them" if self.writer else f"{self.num_trained:,} of them {use}"
        return f"{self.num_tokens:,} tokens, {rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutRows:
    """The rows that are not used for one reason."""

    reason: str  # "too long"
    num_rows: int
    first: tuple[str, ...]  # where the first few stand, and what is the matter with each


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRows:
    """What became of the rows of a source."""

    name: str  # path, or id and split
    num_rows: int  # of the source, looked at or not
    num_used: int
    num_not_needed: int  # not looked at, or held out where the others are trained on
    num_duplicates: int  # used rows that say what an earlier one says
    left_out: tuple[LeftOutRows, ...]  # of the rows looked at
    label: str = ""  # what metrics call it, where there are several
    share: float = 1.0  # of the sequences that are drawn
    num_drawn: int = 0  # sequences of the run
    num_epochs: float = 0.0  # how often its rows come in those; an estimate where rows were not looked at

    @property
    def num_left_out(self) -> int:
        """Return how many of the rows looked at are not used."""
        return sum(each.num_rows for each in self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRows:
    """The rows that one of several teachers reads."""

    name: str  # hub id or directory
    values: tuple[str, ...]  # of teacher.column; "*": of all others
    num_training: int
    num_heldout: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin:
    """How many rows have between `first` and `last` tokens."""

    first: int
    last: int
    num_rows: int

    @property
    def name(self) -> str:
        """Return `65 to 128`."""
        return f"{self.first:,} to {self.last:,}" if self.first < self.last else f"{self.last:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of the rows that are trained on, prompt and completion together."""

    bins: tuple[LengthBin, ...]
    mean: float
    median: float
    high: int  # 95 % of the rows have no more
    longest: int
    trained_share: float  # of all tokens, those of the data's own answers


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """All of it."""

    training: SourceRows
    heldout: SourceRows
    lengths: Lengths
    steps_per_epoch: float
    first: tuple[SeenRow, ...]
    ends: tuple[str, ...] = ()  # tokens at which whoever writes stops
    use: str = "trained on"  # what marked tokens are to the command
    sources: tuple[SourceRows, ...] = ()  # each of those that `training` is the sum of; none where it is one
    teachers: tuple[TeacherRows, ...] = ()  # none where there is one
    rows: str = ""  # digest of which rows they are, and of who teaches them; "" in files of earlier versions

    @property
    def epochs(self) -> str:
        """Format `0.37 of prompts and 4.10 of answers`."""
        parts = [f"{source.num_epochs:.2f} of {source.label}" for source in self.sources]
        return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def write_data(directory: Path, data: RunData) -> None:
    """Put `data.json` into a run's directory.

    Raises StorageError, and RunError where the run has begun with other rows.
    """
    before = read_data(directory)
    has_changed = before is not None and before.rows and before.rows != data.rows
    if has_changed and any((directory / name).exists() for name in _BEGUN):
        raise RunError(
            f"{directory} has begun with other rows, or other teachers for them: the data is not what it was; "
            "put back what it was, or give this run another name"
        )
    write_text(directory / DATA, json.dumps(asdict(data), ensure_ascii=False, indent=1) + "\n")


def read_data(directory: Path) -> RunData | None:
    """Return what `data.json` says; None where there is none, as of earlier versions, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        return _RUN_DATA.validate_json((directory / DATA).read_bytes())
    return None


def elide(pieces: Sequence[Piece], most: int) -> tuple[Piece, ...]:
    """Return the pieces with at most `most` characters of each: of a longer one both ends, and how much is missing."""
    return tuple(
        piece
        if len(piece.text) <= most
        else Piece(
            text=f"{piece.text[: most // 2]} … {len(piece.text) - most // 2 * 2:,} characters … "
            f"{piece.text[len(piece.text) - most // 2 :]}",
            is_trained=piece.is_trained,
            is_special=piece.is_special,
        )
        for piece in pieces
    )


_RUN_DATA = TypeAdapter(RunData)
