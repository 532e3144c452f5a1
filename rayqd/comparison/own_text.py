"""The records of what students do along the text that they write themselves, which `rayqd compare` keeps and finds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from rayqd.files import write_text
from rayqd.metrics.fidelity import ByRow
from rayqd.runs.continuations import Basis, Continuations, OwnText
from rayqd.runs.paths import EVALS

FILE = "own-text.json"  # in a run's eval/


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTexts:
    """What was measured of a comparison's runs, by their names."""

    num_prompts: int  # of held-out rows
    max_new_tokens: int
    by_run: dict[str, ByRow] = field(default_factory=dict[str, ByRow])
    errors: dict[str, str] = field(default_factory=dict[str, str])  # why a run could not be measured


def read_own_text(run_dir: Path, basis: Basis) -> ByRow | None:
    """Return what was measured on that very basis, by a comparison or by `rayqd eval`; None where nothing was."""
    return next((found.by_row for found in _records(run_dir) if found.basis == basis), None)


def write_own_text(run_dir: Path, found: OwnText) -> None:
    """Keep it beside the run. Raises StorageError."""
    (run_dir / EVALS).mkdir(exist_ok=True)
    write_text(run_dir / EVALS / FILE, json.dumps(asdict(found), indent=1) + "\n")


def _records(run_dir: Path) -> Iterator[OwnText]:
    for file in [run_dir / EVALS / FILE, *sorted((run_dir / EVALS).glob("*-continuations.json"))]:
        try:
            content = file.read_bytes()
            found = _OWN.validate_json(content) if file.name == FILE else _ALL.validate_json(content).own_text
        except (OSError, ValueError):  # none, or not whole: it is measured again
            continue
        if found:
            yield found


_OWN = TypeAdapter(OwnText)
_ALL = TypeAdapter(Continuations)
