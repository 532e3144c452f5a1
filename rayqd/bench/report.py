"""A benchmark's numbers, as a table on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from rayqd.bench.timing import Timing
from rayqd.console.tables import Column, print_table

Cell = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One arm: what the table says of it, and what the JSON says besides."""

    cells: Mapping[str, Cell]  # by column
    timing: Timing
    by_beta: Mapping[str, Mapping[float, float]] = field(default_factory=dict)  # "loss" and "cosine" of a payload

    def to_json(self) -> dict[str, JsonValue]:
        """Return cells, timing, and what depends on beta, side by side."""
        row: dict[str, JsonValue] = {**self.cells, **asdict(self.timing)}
        for name, values in self.by_beta.items():
            row[name] = {str(beta): value for beta, value in values.items()}
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All arms, and on what they were measured."""

    kind: str  # step, loss or teacher
    model: str
    device: str
    torch: str  # version
    dtype: str
    sequences: int
    length: int  # tokens of each sequence
    repeats: int
    rows: Sequence[BenchRow]

    def to_json(self) -> dict[str, JsonValue]:
        """Return what `--json` writes."""
        return {
            "kind": self.kind,
            "model": self.model,
            "device": self.device,
            "torch": self.torch,
            "dtype": self.dtype,
            "sequences": self.sequences,
            "length": self.length,
            "repeats": self.repeats,
            "rows": [row.to_json() for row in self.rows],
        }

    def show(self, console: Console) -> None:
        """Print a table with a row an arm; where there is no room the last columns go first."""
        title = f"{self.kind}: {self.model}, {self.sequences} x {self.length} tokens, {self.dtype}, {self.device}"
        columns = [
            Column(heading=name, is_label=i == 0, rank=max(0, i - 1)) for i, name in enumerate(self.rows[0].cells)
        ]
        rows = [[Text(_format(cell)) for cell in row.cells.values()] for row in self.rows]
        print_table(console, columns, rows, title=title)


def _format(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:,.1f}" if cell >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
