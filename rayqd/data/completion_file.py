"""A data set that a model writes: FILE.jsonl with the rows, and FILE.json beside it that tells how they were made.

Rows are added as they come, and put in the data's shuffled order when all are there. What was written stays: who opens
the file again goes on with what it lacks, if model, settings and prompts are those that it was begun with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

from rayqd.data.conversation import CUT
from rayqd.data.detokenize import CompletionRow
from rayqd.data.jsonl import JsonlFile
from rayqd.data.prompts import Prompts
from rayqd.errors import RunError
from rayqd.files import write_text

_WRITTEN_BY = "rayqd generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a file holds."""

    num_rows: int = 0
    num_tokens: int = 0  # of the completions
    num_cut: int = 0  # completions without an end
    num_changed: int = 0  # completions whose text gives other tokens than were sampled
    num_left_out: int = 0  # empty completions, which are not in it

    def plus(self, row: CompletionRow) -> Summary:
        """Return the summary of a file with `row` in it too."""
        return replace(
            self,
            num_rows=self.num_rows + 1,
            num_tokens=self.num_tokens + row["num_tokens"],
            num_cut=self.num_cut + (row["finish_reason"] == CUT),
            num_changed=self.num_changed + (not row["same_tokens"]),
        )


class _Header(TypedDict, total=False):
    """FILE.json."""

    written_by: str
    command: str
    settings: Mapping[str, object]  # what the completions depend on
    finished: bool
    summary: dict[str, int]
    left_out: list[int]  # rows of the source whose completion is empty


class CompletionFile:
    """To be used in a `with`; one process at a time can have it. First `read`, then `append`, at last `finish`."""

    def __init__(self, path: Path, *, settings: Mapping[str, object], command: str) -> None:
        """Open or create it. Raises RunError where it was begun with other `settings`, or by another program."""
        self.path = path
        self.done: set[int] = set()
        """Rows of the source that need no completion any more."""
        self._summary = Summary()
        self._header_path = path.with_suffix(".json")
        self._lines: JsonlFile[CompletionRow] = JsonlFile(path)
        try:
            header = self._read_header()
            _check_settings(path, header.get("settings", settings), settings)
        except RunError:
            self._lines.close()
            raise
        self._left_out = header.get("left_out", [])
        self._finished = header.get("finished", False)
        self._begun = False
        self._header = _Header(written_by=_WRITTEN_BY, command=command, settings=dict(settings))

    def __enter__(self) -> CompletionFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    @property
    def summary(self) -> Summary:
        """Counts of the rows read and appended so far."""
        return replace(self._summary, num_left_out=len(self._left_out))

    def read(self, prompts: Prompts) -> None:
        """Learn which rows are done. Raises RunError at one whose prompt is no longer that of `prompts`."""
        for row in self._lines.rows():
            if prompts.messages(row["row"]) != row["messages"][:-1]:
                raise RunError(
                    f"{self.path} answers other prompts than {prompts.source} has now (row {row['row']}): "
                    "give --out another file, or remove this one"
                )
            self._count(row)
        self.done.update(self._left_out)

    def append(self, row: CompletionRow) -> None:
        """Write `row`; it survives this process from the moment this returns."""
        if not self._begun:
            self._begun, self._finished = True, False
            self._write_header()
        self._lines.append(row)
        self._count(row)

    def leave_out(self, row: int) -> None:
        """Record that row `row` of the source got an empty completion, and is not to be asked again."""
        self._left_out.append(row)
        self.done.add(row)
        self._write_header()

    def finish(self, order: Iterable[int]) -> None:
        """Put the rows, which are all there, in the order of `order`, which holds rows of the source."""
        if self._finished:
            return
        positions = {row: position for position, row in enumerate(map(int, order))}
        self._lines.sort(lambda line: positions[line["row"]])
        self._finished = True
        self._write_header()

    def _count(self, row: CompletionRow) -> None:
        self.done.add(row["row"])
        self._summary = self._summary.plus(row)

    def _read_header(self) -> _Header:
        """Return FILE.json, empty for a new file. Raises RunError where another program wrote either file."""
        is_new = self.path.stat().st_size == 0
        try:
            header = json.loads(self._header_path.read_text())
        except FileNotFoundError:
            header = _Header(written_by=_WRITTEN_BY) if is_new else None
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("written_by") != _WRITTEN_BY:
            raise RunError(
                f"{self.path} or {self._header_path.name} beside it is there already and not of `{_WRITTEN_BY}`: "
                "give --out another file"
            )
        return _Header() if is_new else cast(_Header, header)

    def _write_header(self) -> None:
        header = self._header | _Header(finished=self._finished, summary=asdict(self.summary), left_out=self._left_out)
        write_text(self._header_path, json.dumps(header, indent=2, ensure_ascii=False) + "\n")


def _check_settings(path: Path, old: Mapping[str, object], new: Mapping[str, object]) -> None:
    changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        raise RunError(
            f"{path} was begun with other settings ({'; '.join(changed)}): give --out another file, or remove this one"
        )
