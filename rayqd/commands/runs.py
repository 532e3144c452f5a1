"""`rayqd runs`: the runs of a directory, newest first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.text import Text

from rayqd.console.say import say
from rayqd.console.tables import Column, print_table
from rayqd.errors import RunError
from rayqd.runs.paths import CONFIG
from rayqd.runs.record import RunRecord, read_run

_STYLES = {"running": "green", "failed": "red", "stopped": "yellow", "unfinished": "yellow"}


def show_runs(
    records: Sequence[RunRecord], directory: Path, *, as_json: bool = False, console: Console | None = None
) -> None:
    """Print the runs found in `directory`, and below them why some failed or cannot be read."""
    if as_json:
        print(json.dumps([fields(record) for record in records], indent=2))
        return
    console = console or plain_console()
    if not records:
        say(console, f"no runs in {directory}")
        return
    print_table(console, _COLUMNS, [_cells(record, time.time()) for record in records], boxed=False)
    for record in records:
        if text := record.error or record.problem:
            say(console, f"{record.name}: {text}")


def find_runs(directory: Path) -> list[RunRecord]:
    """Return the runs in `directory`, newest first, and one level deeper, where sweeps and comparisons keep theirs.

    Where `directory` is a run itself, that one. Raises RunError where there is no such directory.
    """
    if not directory.is_dir():
        raise RunError(f"{directory} is no directory: rayqd runs DIR lists the runs in DIR, which runs_dir sets")
    if (directory / CONFIG).is_file():
        itself = read_run(directory)
        if itself.command not in ("sweep", "compare"):
            return [itself]
    files = [*directory.glob(f"*/{CONFIG}"), *directory.glob(f"*/*/{CONFIG}")]
    records = [read_run(file.parent, str(file.parent.relative_to(directory))) for file in files]
    return sorted(records, key=lambda record: record.updated, reverse=True)


def fields(record: RunRecord) -> dict[str, JsonValue]:
    """Return a run for programs; what is not known is null."""
    config, students = record.config, record.students
    return {
        "name": record.name,
        "path": str(record.path),
        "command": record.command,
        "state": record.state,
        "error": record.error or None,
        "step": record.step if record.trains else None,
        "num_steps": record.num_steps if record.trains else None,
        "first_arm": students[0].arm.name if students else None,
        "first_kl_to_teacher": students[0].fidelity.kl_to_teacher if students else None,
        "last_arm": students[-1].arm.name if students else None,
        "last_kl_to_teacher": students[-1].fidelity.kl_to_teacher if students else None,
        "model": config.model.name if config else None,
        "format": config.quant.format if config and record.rounds else None,
        "group_size": config.quant.group_size if config and record.rounds else None,
        "updated": record.updated,
    }


def plain_console() -> Console:
    """Return a console whose tables are as wide as they need to be where no terminal sets a limit."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


_COLUMNS = (
    Column(heading="RUN", is_label=True),
    Column(heading="STATE", is_words=True),
    Column(heading="STEP", rank=1),
    Column(heading="KL TO TEACHER"),
    Column(heading="MODEL", is_label=True, rank=3),
    Column(heading="FORMAT", is_words=True, rank=2),
    Column(heading="AGE", rank=4),
)


def _cells(record: RunRecord, now: float) -> list[str | Text]:
    config = record.config
    return [
        Text(record.name),
        Text(record.state, style=_STYLES.get(record.state, "")),
        f"{record.step}/{record.num_steps}" if record.trains and config else "-",
        _kl(record),
        Text(Path(config.model.name).name if config else "?"),
        (f"{config.quant.format} g{config.quant.group_size}" if record.rounds else "-") if config else "?",
        age(now - record.updated),
    ]


def _kl(record: RunRecord) -> str:
    """Return the first measurement and the last."""
    values = [f"{row.fidelity.kl_to_teacher:.4f}" for row in record.students]
    return " → ".join(values[:1] + values[1:][-1:]) or "-"


def age(seconds: float) -> str:
    """Write seconds in the largest unit that they fill: 75 -> "1 min", 7300 -> "2 h"."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"
