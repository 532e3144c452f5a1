"""The directory of a sweep or a comparison: each run has its own inside, and a ledger says which were begun."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from rayqd.config import Config
from rayqd.errors import RunError
from rayqd.runs.directory import Result, RunDirectory
from rayqd.runs.lines import LinesFile, read_lines

RunKey = str | int  # what the ledger knows a run by: a trial's number, or a run's name


class Ledger:
    """A line for each run that was begun, and for each that failed, in the order in which it happened."""

    def __init__(self, file: Path, key: str) -> None:
        """Take the file, and the field under which a line has the run's key."""
        self._lines = LinesFile(file)
        self._key = key

    def begin(self, run: RunKey, **about: JsonValue) -> None:
        """Enter a run, and what is to be known of it, whatever becomes of it."""
        self._lines.append({self._key: run, **about})

    def fail(self, run: RunKey, error: str) -> None:
        """Enter why a run failed."""
        self._lines.append({self._key: run, "error": error})

    def begun(self) -> dict[RunKey, dict[str, JsonValue]]:
        """Return the newest line of each run that was ever begun, by its key."""
        return {self._run(row): row for row in self._rows() if "error" not in row}

    def errors(self) -> dict[RunKey, str]:
        """Return why runs failed, by key, unless they have been begun again."""
        errors: dict[RunKey, str] = {}
        for row in self._rows():
            if "error" in row:
                errors[self._run(row)] = str(row["error"])
            else:
                errors.pop(self._run(row), None)
        return errors

    def refuse_damaged(self) -> None:
        """Raise RunError where a line is not what was written: nobody knows what its run was to be."""
        path = self._lines.path
        if num_damaged := read_lines(path)[1]:
            raise RunError(
                f"{path} is damaged in {num_damaged} lines: bring back a copy of it, or remove these "
                "lines and the directories of the trials that are then in none"
            )

    def _rows(self) -> list[dict[str, JsonValue]]:
        return [row for row in read_lines(self._lines.path)[0] if self._key in row]

    def _run(self, row: dict[str, JsonValue]) -> RunKey:
        key = row[self._key]
        return key if isinstance(key, int) else str(key)


class DirectoryOfRuns:
    """What sweeps and comparisons have in common: the lock, the ledger, the result."""

    def __init__(self, config: Config, command: str, ledger: str, key: str) -> None:
        """Lock the directory; raises RunError where another process or something else has it.

        `ledger` is the name of a file, `key` the field by which it knows runs.
        """
        self._run_dir = RunDirectory(config, command)
        self.path = self._run_dir.path
        self._ledger = Ledger(self.path / ledger, key)

    def finish(self, result: Result) -> None:
        """Write `result.json`."""
        self._run_dir.finish(result)

    def link_logs(self, logs: Path | None) -> None:
        """Link to Ray's logs, if they are on this machine."""
        self._run_dir.link_logs(logs)

    def close(self) -> None:
        """Unlock the directory."""
        self._run_dir.close()
