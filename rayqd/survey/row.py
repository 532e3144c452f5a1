"""What a trial of one architecture came to, as it is kept in a file and shown in a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class Verdict(StrEnum):
    """What a trial came to."""

    EXACT = "exact"  # everything that was compared agrees
    REFUSED = "refused"  # in one line, before anything starts
    WRONG = "wrong"  # numbers differ, and nothing said so
    FAILED = "failed"  # an exception of some library's, a hang or a crash


@dataclass(slots=True, kw_only=True)
class Row:
    """One architecture. Differences are the largest, as a share of the root mean square of what is compared."""

    architecture: str  # "qwen3_moe"
    class_name: str
    verdict: Verdict
    words: str = ""  # of a refusal, or what is wrong
    batching: str = ""  # "packed", "padded" or "alone"
    head: str = ""  # what becomes of the product of states and head
    num_quantized: int = 0  # matrices
    experts: str = ""  # "4-bit", "16-bit" or "" for none
    dense: list[str] = field(
        default_factory=list[str]
    )  # kinds of matrices that stay in 16 bits, head and embedding not
    untrained: list[str] = field(default_factory=list[str])  # kinds of called layers that got no gradient in a step
    group_size: int = 0  # of the tiny model
    calibrations: dict[str, str] = field(default_factory=dict[str, str])  # "exact", or the words of a refusal
    engine: bool | None = None  # whether vLLM has the architecture; None without vLLM
    differences: dict[str, float] = field(default_factory=dict[str, float])
    kl: dict[str, float] = field(
        default_factory=dict[str, float]
    )  # that a run reports, its eval, and transformers alone

    def write(self, file: Path) -> None:
        """Keep the row in `file`."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, file: Path) -> Row:
        """Return the row that `write` kept."""
        values: dict[str, Any] = json.loads(file.read_text())
        return cls(**{**values, "verdict": Verdict(values["verdict"])})
