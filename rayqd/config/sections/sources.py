"""One of the data sets that a run mixes."""

from __future__ import annotations

import difflib
from pathlib import PurePosixPath

from pydantic import Field, field_validator

from rayqd.config.sections.base import Section

COLUMNS = ("messages", "prompt", "input", "completion", "chosen", "text", "system", "tools")
"""What `data.columns` can name a column for."""


class SourceConfig(Section):
    """One of `data.sources`: where its rows are, and how often it is drawn from."""

    source: str = Field(min_length=1)
    """As data.source: a file, several, a URL, a directory, a data set id, or "quickstart"."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")
    """What metrics and pages call it, and a flag (--data.sources.NAME.weight 2); none: the last part of source, without
    what follows its first dot."""
    split: str = "train"
    """As data.split."""
    subset: str | None = None
    """As data.subset."""
    columns: dict[str, str] = Field(default={})
    """As data.columns."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Share of a run's sequences that are drawn from it, beside the weights of the others: 3 and 1 are three quarters
    and a quarter, whatever the sizes of the data sets."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many of its rows are trained on, chosen by the seed; none: as many as there are."""

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str]) -> dict[str, str]:
        return check_columns(columns)

    @property
    def label(self) -> str:
        """What metrics and pages call it where no other one is called the same."""
        return self.name or label_of_source(self.source)


def label_of_source(source: str) -> str:
    """Return the last part of a path, a URL or an id: `rows` of data/rows.jsonl.gz."""
    last = PurePosixPath(source.rstrip("/")).name
    return last.lstrip(".").partition(".")[0] or last or source


def check_columns(columns: dict[str, str]) -> dict[str, str]:
    """Return `columns`. Raises ValueError where one is named for what is no column of rayqd's."""
    if unknown := sorted(columns.keys() - set(COLUMNS)):
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{unknown[0]} must be one of {', '.join(COLUMNS)}{hint}")
    return columns
