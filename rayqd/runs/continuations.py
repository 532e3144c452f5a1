"""What `rayqd eval` measured of the student where it goes on by itself: `eval/NAME-continuations.json`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from pydantic import TypeAdapter

from rayqd.files import write_text
from rayqd.metrics.bootstrap import Estimate
from rayqd.metrics.fidelity import ByRow
from rayqd.runs.paths import EVALS, EXPORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """How the student does at some positions of completions, the first token's being 0."""

    first: int
    last: int
    num_rows: int  # completions that reach so far
    num_tokens: int
    kl: Estimate  # KL(teacher‖student), nats a token
    top1_agreement: Estimate  # share of the tokens at which both find the same id likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """One prompt, and how each model goes on, always with the likeliest token."""

    prompt: str
    texts: Mapping[str, str]  # by model
    agreed: int  # tokens until teacher and student part


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the sums along a student's own completions rest on."""

    prompts: str  # digest of their ids
    model: str  # digest of the student's weights
    teacher: str  # likewise
    dtype: str
    ends: tuple[int, ...]  # ids that end a completion
    max_new_tokens: int
    seed: int  # of what is sampled
    rayqd: str  # version


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnText:
    """How a student does along what it wrote itself, prompt by prompt: by it models are compared row by row."""

    by_row: ByRow  # of each prompt, over the completion that the student sampled
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuations:
    """Exposure bias, measured: the same student along the data's completions and along its own."""

    data: tuple[Positions, ...]
    own: tuple[Positions, ...]  # sampled at temperature 1
    agreed: tuple[int, ...]  # of each prompt: tokens until the student's greedy path leaves the teacher's
    num_whole: int  # prompts at which both paths are the same to their end
    max_new_tokens: int
    samples: tuple[SideBySide, ...]
    own_text: OwnText | None = None  # the sums that `own` is made of; None in files from before it was kept

    @property
    def agreement(self) -> str:
        """Return how long teacher and student agree, in a sentence."""
        return (
            f"Always taking the likeliest token, student and teacher write the same for {median(self.agreed):g} tokens "
            f"(median of {len(self.agreed)} prompts), and at {self.num_whole} of them to the end (at most "
            f"{self.max_new_tokens} tokens)."
        )


def continuations_file(run_dir: Path, name: str) -> Path:
    """Return where those of the model called `name` are kept."""
    return run_dir / EVALS / f"{name}-continuations.json"


def write_continuations(file: Path, found: Continuations) -> None:
    """Write them. Raises StorageError."""
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n")


def read_continuations(run_dir: Path) -> Continuations | None:
    """Return those of the run's export, measured last, under the run's name or its own; None where it was not."""
    files = [file for name in (run_dir.name, EXPORT) if (file := continuations_file(run_dir, name)).exists()]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    with contextlib.suppress(OSError, ValueError):
        return None if newest is None else _CONTINUATIONS.validate_json(newest.read_bytes())
    return None


_CONTINUATIONS = TypeAdapter(Continuations)
