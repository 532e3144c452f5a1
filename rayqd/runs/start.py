"""`start/arms.json`: how good the student is untrained, rounded to nearest and as calibration leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import JsonValue, TypeAdapter

from rayqd.checksums import from_checked_json, to_checked_json
from rayqd.errors import RunError
from rayqd.events import Arm
from rayqd.metrics.fidelity import Fidelity, TextFields, parse_fidelity

_FILE_NAME = "arms.json"
_TEXT_NAME = "teacher-text.json"
_ERRORS_NAME = "layer-errors.json"


def write_arms(directory: Path, arms: Mapping[Arm, Fidelity], of_teacher: TextFields | None = None) -> None:
    """Write the untrained arms to `directory`, and the teacher's perplexity of `eval.text`. Raises OSError."""
    if of_teacher is not None:
        (directory / _TEXT_NAME).write_text(to_checked_json(of_teacher))
    (directory / _FILE_NAME).write_text(to_checked_json({arm.name: f.to_json() for arm, f in arms.items()}))


def read_teacher_text(directory: Path) -> TextFields | None:
    """Return the teacher's perplexity of `eval.text`; None where it was not written, or is damaged."""
    try:
        row = from_checked_json((directory / _TEXT_NAME).read_bytes())
        perplexity, number = _NUMBER.validate_python(row["text_perplexity"]), row["num_text_tokens"]
        return {"text_perplexity": perplexity, "num_text_tokens": int(_NUMBER.validate_python(number))}
    except (OSError, ValueError, KeyError):
        return None


def write_layer_errors(directory: Path, errors: Mapping[Arm, Mapping[str, float]]) -> None:
    """Write how far each layer's output is from the original's, by arm and layer. Raises OSError."""
    (directory / _ERRORS_NAME).write_text(to_checked_json({arm.name: dict(each) for arm, each in errors.items()}))


def read_layer_errors(directory: Path) -> dict[Arm, dict[str, float]]:
    """Return what `write_layer_errors` wrote; nothing where it was not written, or is damaged."""
    try:
        rows = from_checked_json((directory / _ERRORS_NAME).read_bytes())
        return {Arm.from_name(name): _NUMBERS.validate_python(row) for name, row in rows.items()}
    except (OSError, ValueError):
        return {}


def read_arms(directory: Path) -> dict[Arm, Fidelity]:
    """Return what `write_arms` wrote, in its order. Raises RunError where it is damaged."""
    try:
        rows = from_checked_json((directory / _FILE_NAME).read_bytes())
        return {Arm.from_name(name): parse_fidelity(cast("Mapping[str, JsonValue]", row)) for name, row in rows.items()}
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{directory / _FILE_NAME} is damaged ({reason}): remove {directory}, and the same command makes it again"
        ) from error


_NUMBER = TypeAdapter(float)
_NUMBERS = TypeAdapter(dict[str, float])
