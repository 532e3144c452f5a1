"""A trial: an ordinary run that differs from the others of its sweep in a few settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import PurePath
from typing import Any

_LONGEST_VALUE = 24
_LONGEST_NAME = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    number: int  # from 1, in the order of their making
    settings: Mapping[str, Any]  # by dotted name: what sets it apart

    @property
    def name(self) -> str:
        """`003-lmbda=0.5-lr=1e-4`: the same for the same trial, and a directory's name."""
        labels = short_labels(list(self.settings))
        parts = [f"{labels[key]}={_plain(value_label(value))}" for key, value in self.settings.items()]
        return "-".join([f"{self.number:03d}", *parts])[:_LONGEST_NAME].rstrip("-.=")


def short_labels(keys: list[str]) -> dict[str, str]:
    """Each dotted name's last part, or all of it where two end alike."""
    leaves = [key.rpartition(".")[2] for key in keys]
    return {key: leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)}


def value_label(value: object) -> str:
    """`value` as people write it: 1e-4, 0.5, on, q_proj+v_proj; of a path its last part."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "+".join(value_label(part) for part in value)  # pyright: ignore[reportUnknownVariableType]
    return PurePath(value).name if isinstance(value, str) and "/" in value else str(value)


def _number(value: float) -> str:
    """The shortest text that reads back as `value`; what is below a hundredth as 1e-4."""
    shortest = Decimal(repr(value)).normalize()
    return f"{shortest:e}" if 0 < abs(value) < 1e-2 else f"{shortest:f}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]", lambda found: found[0] if found[0] == "-" else "_", text)[:_LONGEST_VALUE]
