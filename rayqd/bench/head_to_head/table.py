"""The table of `rayqd bench run`: a contender a row, what it takes beside rayqd, and below it what each leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.text import Text

from rayqd.bench.head_to_head.peers import BY_NAME
from rayqd.bench.head_to_head.result import OWN, HeadToHeadResult
from rayqd.console.tables import Column, print_table

_COLUMNS = (
    Column(heading="", is_label=True),
    Column(heading="s/step"),
    Column(heading="to rayqd"),
    Column(heading="tokens/s", rank=1),
    Column(heading="to the first step, s", rank=2),
    Column(heading="peak GiB", rank=3),
    Column(heading="CPU s/step", rank=4),
)

_LEGEND = (
    "s/step: the median of all steps but the first. to rayqd: how many times as long as rayqd's; of rollouts alone, as "
    "rayqd's rollouts. tokens/s: completion tokens trained on (vLLM: written). peak: of all its processes; "
    "of a GPU also what they reserve and do not use. Peers run on one GPU. All have the same requests.",
    "rayqd: INT4 rounding in the step, adapters inside it, INT4 rollouts; each role is a process of its own",
)


def show(results: Sequence[HeadToHeadResult], title: str, console: Console) -> None:
    """Print a table an arm, the rows that have no numbers as lines below it, and the legend."""
    for arm in dict.fromkeys(result.arm for result in results):
        rows = [result for result in results if result.arm == arm]
        measured = [row for row in rows if row.status == "measured"]
        if measured:
            cells = [[Text(cell) for cell in cells_of(row, rows)] for row in measured]
            print_table(console, _COLUMNS, cells, title=f"{arm}: {title}")
        for line in remarks(rows):
            console.print(line, highlight=False, markup=False)
    for line in legend(results):
        console.print(line, highlight=False, markup=False)


def cells_of(row: HeadToHeadResult, rows: Iterable[HeadToHeadResult]) -> list[str]:
    """Return the cells of a measured row; what is not known stays empty."""
    ratio = ratio_to_own(row, rows)
    return [
        row.label + (f" ({row.settings})" if row.settings else ""),
        _number(row.seconds),
        "" if ratio is None else f"{ratio:.2f}",
        _number(row.tokens_per_second),
        _number(row.first_step_seconds),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.1f}",
        _number(row.cpu_seconds),
    ]


def ratio_to_own(row: HeadToHeadResult, rows: Iterable[HeadToHeadResult]) -> float | None:
    """Return how many times as long as rayqd's the row's step takes; of rollouts alone, as rayqd's rollouts.

    None where rayqd was not measured.
    """
    own = next((each for each in rows if each.contender == OWN and each.status == "measured"), None)
    if own is None or row.seconds is None:
        return None
    seconds = own.role_seconds.get("rollout") if row.rollouts_alone else own.seconds
    return row.seconds / seconds if seconds else None


def remarks(rows: Iterable[HeadToHeadResult]) -> Iterator[str]:
    """Say of an arm's rows what the table has no room for: rayqd's roles, what was skipped and what failed."""
    for row in rows:
        if row.status != "measured":
            yield f"{row.label}: {row.status}: {row.why}"
        elif row.why:
            yield f"{row.label}: {row.why}"
        if len(row.step_seconds) == 1:
            yield f"{row.label}: s/step is of one step, as no other was counted"
        if row.role_seconds:
            parts = ", ".join(f"{role} {seconds:.2f}" for role, seconds in row.role_seconds.items())
            yield f"{row.label}, seconds of a step by role: {parts}"


def legend(results: Iterable[HeadToHeadResult]) -> Iterator[str]:
    """Say what the numbers are, and of each peer in the table what it does and leaves out."""
    yield from _LEGEND
    for name in dict.fromkeys(result.contender for result in results if result.contender != OWN):
        if name in BY_NAME:
            yield f"{BY_NAME[name].label}: {BY_NAME[name].remark}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"
