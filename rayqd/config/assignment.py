"""A setting as it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A setting as it was given."""

    key: str
    value: object
    origin: str  # how an error shows it: "a.toml: learner.lr = 1", "flag --learner.lr=1"
    layer: int = 0  # files count from 0, flags are the last: later ones win over earlier ones
    of_fields: Mapping[tuple[int, str], str] = field(default_factory=dict[tuple[int, str], str])
    """Of a list of tables: the origin of each field that was given by itself, by table and name."""
