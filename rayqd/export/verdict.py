"""What verifying an export found: a table for the terminal, and verify.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from rayqd.console.say import say
from rayqd.errors import StorageError

FILE_NAME = "verify.json"
NUM_NAMED = 5  # differing tensors that the terminal names


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    text: str
    passed: bool | None = None  # None: only reported
    value: float | None = None
    differing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All that was looked at in an export."""

    directory: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Return whether no check failed."""
        return all(check.passed is not False for check in self.checks)


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Print the table of checks, and the first differing tensors by name."""
    table = Table(title=f"{verdict.directory}: {'verified' if verdict.passed else 'DIFFERS'}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("")
    table.add_column("", no_wrap=True)
    marks = {True: "ok", False: "DIFFERS", None: ""}
    for check in verdict.checks:
        table.add_row(check.name, check.text, marks[check.passed])
    console.print(table, highlight=False)
    differing = [line for check in verdict.checks for line in check.differing]
    for line in differing[:NUM_NAMED]:
        say(console, f"  {line}")
    if len(differing) > NUM_NAMED:
        console.print(f"  and {len(differing) - NUM_NAMED} more, in {FILE_NAME}", highlight=False)


def write_verdict(directory: Path, verdict: Verdict) -> None:
    """Keep the verdict in verify.json beside `directory`, under its name; those of other exports stay."""
    file = directory.absolute().parent / FILE_NAME
    verdicts: dict[str, JsonValue] = json.loads(file.read_text()) if file.is_file() else {}
    verdicts[directory.absolute().name] = {"passed": verdict.passed, **asdict(verdict)}
    try:
        file.write_text(json.dumps(verdicts, indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"{file} could not be written: {error.strerror}") from error
