"""`audit.jsonl`: what the run was to train on, and a line for each step that says what it did train on.

The first line holds the plan. A file of years has gigabytes: nobody reads it whole but `rayqd doctor`, line by line.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue

from rayqd.audit import StepAudit, chain, to_row
from rayqd.checksums import DamagedError, from_checked_json
from rayqd.errors import RunError, StorageError
from rayqd.runs.lines import LinesFile

_BLOCK_BYTES = 1 << 16

Row = dict[str, JsonValue]


class AuditFile:
    """The writer of one run's file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = LinesFile(path)
        self._header: Row | None = None
        self._step = 0  # the last one written
        self._chain = ""

    def begin(self, plan: Mapping[str, object]) -> None:
        """Take the run's plan. Raises RunError where the steps that are done followed another one."""
        plan = {"plan": json.loads(json.dumps(plan))}  # tuples are lists there
        self._header = {**plan, "chain": chain("", plan)}
        first = next(read_audit(self.path), None)
        if first and "plan" in first and first["plan"] != plan["plan"]:
            difference = _difference(first["plan"], plan["plan"])
            raise RunError(
                f"{self.path.parent} has steps that followed another plan ({difference}): "
                "the data is not what it was; put back what it was, or give this run another name"
            )

    def forget_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and what a killed process left of one."""
        with contextlib.suppress(StorageError):
            self._lines.finish()
        self._lines = LinesFile(self.path)
        end, last = _find_last(self.path, step)
        self._step, self._chain = (int(str(last.get("step", 0))), str(last["chain"])) if last else (0, "")
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.path, end)

    def append(self, steps: Sequence[StepAudit]) -> str | None:
        """Add the lines of steps that are not there yet; return a line for the user as `LinesFile.append` does."""
        told: str | None = None
        for audit in steps:
            if audit.step <= self._step:
                continue
            if not self._chain and self._header:
                self._chain = str(self._header["chain"])
                told = self._lines.append(self._header) or told
            row = to_row(audit, self._chain)
            told = self._lines.append(row) or told
            self._step, self._chain = audit.step, str(row["chain"])
        return told

    def finish(self) -> None:
        """Write what still waits. Raises StorageError where that cannot be."""
        self._lines.finish()


def read_audit(path: Path) -> Iterator[Row | None]:
    """Yield the rows, the plan's first, None for a line that is damaged; an end without a newline is not there yet."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        for line in stream:
            if line.endswith(b"\n"):
                yield _parse(line)


def _find_last(path: Path, step: int) -> tuple[int, Row | None]:
    """Return the last row of a step up to `step`, or the plan's, and where its line ends; (0, None) without one."""
    for end, line in _lines_backwards(path):
        row = _parse(line)
        number = row.get("step") if row else None
        if row and "chain" in row and isinstance(number, int) and number <= step:
            return end, row
    return 0, None


def _lines_backwards(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each whole line, the last one first, and the place behind its newline."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        start, rest = stream.seek(0, os.SEEK_END), b""
        while start:
            size = min(_BLOCK_BYTES, start)
            start -= size
            stream.seek(start)
            text = stream.read(size) + rest
            rest, *lines = text.splitlines(keepends=True)  # the first may have begun in the block before
            end = start + len(text)
            for line in reversed(lines):
                if line.endswith(b"\n"):
                    yield end, line
                end -= len(line)
        if rest.endswith(b"\n"):
            yield len(rest), rest


def _parse(line: bytes) -> Row | None:
    try:
        return from_checked_json(line, may_lack=False)
    except DamagedError:
        return None


def _difference(before: JsonValue, now: JsonValue) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return "its record is damaged"
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)}, now {now.get(name)}" for name in differing)
