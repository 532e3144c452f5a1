"""How close a model is to its teacher on held-out rows: one number a metric, and its sums row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TypedDict

from pydantic import JsonValue, TypeAdapter


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRow:
    """Sums over the trained tokens of each held-out row, [R]: by them two models are compared row by row."""

    num_tokens: tuple[int, ...]
    kl: tuple[float, ...]  # nats
    agrees: tuple[int, ...]  # tokens at which both find the same id likeliest
    nll: tuple[float, ...]  # nats, of the reference completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How close a model is to the teacher: means over the completion tokens of the held-out rows."""

    kl_to_teacher: float  # KL(teacher‖student), nats a token
    total_variation: float  # sum |p - q| / 2, 0 to 1: how often two samplers with shared randomness must differ
    top1_agreement: float  # share of the tokens at which both find the same id likeliest
    perplexity: float  # of the reference completions
    num_tokens: int
    by_row: ByRow | None = None  # None in runs from before it was kept
    text_perplexity: float | None = None  # of eval.text; None without one
    num_text_tokens: int | None = None  # of it, that were scored

    def to_json(self) -> dict[str, JsonValue]:
        """Return its fields as a file has them; what is None is left out of them."""
        fields: dict[str, JsonValue] = {name: value for name, value in asdict(self).items() if value is not None}
        if self.by_row:
            fields["by_row"] = {name: [*values] for name, values in asdict(self.by_row).items()}
        return fields


class TextFields(TypedDict):
    """Those of its fields that are about `eval.text`."""

    text_perplexity: float
    num_text_tokens: int


def parse_fidelity(row: Mapping[str, JsonValue]) -> Fidelity:
    """Read back a row of any version, other fields in it or not. Raises ValueError where it is none."""
    return _FIDELITY.validate_python(row)


_FIDELITY = TypeAdapter(Fidelity)
