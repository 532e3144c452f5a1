"""A data set that a model writes: FILE.jsonl with the rows, and FILE.json beside it that tells how they were made.

Rows are added as they come, and put in the data's shuffled order when all are there. What was written stays: who opens
the file again goes on with what it lacks, if model, settings and prompts are those that it was begun with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rayqd.data.lines import Lines, Row
from rayqd.data.prompts import Prompts
from rayqd.data.sources import CUT, FINISH_REASON
from rayqd.errors import RunError
from rayqd.files import write_text

_WRITTEN_BY = "rayqd generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a file holds."""

    num_rows: int = 0
    num_tokens: int = 0  # of the answers
    num_cut: int = 0  # answers without an end
    num_changed: int = 0  # answers whose text gives other tokens than were written
    num_left_out: int = 0  # empty answers, which are not in it

    def plus(self, row: Row) -> Summary:
        return replace(
            self,
            num_rows=self.num_rows + 1,
            num_tokens=self.num_tokens + row["num_tokens"],
            num_cut=self.num_cut + (row[FINISH_REASON] == CUT),
            num_changed=self.num_changed + (not row["same_tokens"]),
        )


class AnswerFile:
    """To be used in a `with`; one process at a time can have it. First `read`, then `append`, at last `finish`."""

    def __init__(self, path: Path, *, settings: Mapping[str, Any], command: str) -> None:
        """`settings` are what the answers depend on; RunError where the file was begun with others, or by others."""
        self.path = path
        self.done: set[int] = set()
        """Rows of the source that need no more answer."""
        self._summary = Summary()
        self._about_path = path.with_suffix(".json")
        self._lines = Lines(path)
        try:
            about = self._read_about()
            _refuse_other(path, about.get("settings", settings), settings)
        except RunError:
            self._lines.close()
            raise
        self._left_out: list[int] = about.get("left_out", [])
        self._finished: bool = about.get("finished", False)
        self._begun = False
        self._about = {"written_by": _WRITTEN_BY, "command": command, "settings": dict(settings)}

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lines.close()

    @property
    def summary(self) -> Summary:
        return replace(self._summary, num_left_out=len(self._left_out))

    def read(self, prompts: Prompts) -> None:
        """Learn what is done. Raises RunError at a row whose prompt is no longer that of `prompts`."""
        for row in self._lines.rows():
            if prompts.messages(row["row"]) != row["messages"][:-1]:
                raise RunError(
                    f"{self.path} answers other prompts than {prompts.source} has now (row {row['row']}): "
                    "give --out another file, or remove this one"
                )
            self._count(row)
        self.done.update(self._left_out)

    def append(self, row: Row) -> None:
        """Kept, whatever becomes of this process, when it returns."""
        if not self._begun:
            self._begun, self._finished = True, False
            self._write_about()
        self._lines.append(row)
        self._count(row)

    def leave_out(self, row: int) -> None:
        """Row `row` of the source got an empty answer, and is not to be asked again."""
        self._left_out.append(row)
        self.done.add(row)
        self._write_about()

    def finish(self, order: Sequence[int]) -> None:
        """All rows are there: put them in the order of `order`, which holds rows of the source."""
        if self._finished:
            return
        places = {row: place for place, row in enumerate(order)}
        self._lines.sort(lambda line: places[line["row"]])
        self._finished = True
        self._write_about()

    def _count(self, row: Row) -> None:
        self.done.add(row["row"])
        self._summary = self._summary.plus(row)

    def _read_about(self) -> dict[str, Any]:
        """What the file beside it says, nothing for a new file. Raises RunError where somebody else wrote either."""
        is_new = self.path.stat().st_size == 0
        try:
            about = json.loads(self._about_path.read_text())
        except FileNotFoundError:
            about = {"written_by": _WRITTEN_BY} if is_new else {}
        except ValueError:
            about = {}
        if not isinstance(about, dict) or about.get("written_by") != _WRITTEN_BY:
            raise RunError(
                f"{self.path} or {self._about_path.name} beside it is there already and not of `{_WRITTEN_BY}`: "
                "give --out another file"
            )
        return {} if is_new else about

    def _write_about(self) -> None:
        about = self._about | {
            "finished": self._finished,
            "summary": asdict(self.summary),
            "left_out": self._left_out,
        }
        write_text(self._about_path, json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def _refuse_other(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        raise RunError(
            f"{path} was begun with other settings ({'; '.join(changed)}): give --out another file, or remove this one"
        )
