"""What a JSON schema finds wrong with a document, as lines that name the key and what it should have been."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rayqd.cluster.documents import YamlMapping, YamlValue

Keys = tuple[str | int, ...]
_FEW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A key of a file, and what is wrong with it."""

    keys: Keys  # where
    text: str

    def __str__(self) -> str:
        return f"{dotted_key(self.keys)}: {self.text}" if self.keys else self.text


def dotted_key(keys: Keys) -> str:
    """Return a key as `spec.workerGroupSpecs[0].groupName`."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys]
    return "".join(parts).removeprefix(".")


def check_schema(document: Any, schema: YamlMapping) -> list[Problem]:
    """Return every violation; what hides in an alternative of the schema counts as the alternative's."""
    from jsonschema import Draft7Validator

    return [problem for error in Draft7Validator(schema).iter_errors(document) for problem in _explain(error)]


def describe_unknown_key(key: str, known: Sequence[str]) -> str:
    """Say what a key that nobody knows should have been: the nearest of `known`, or all if they are few."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; there are {', '.join(sorted(known))}" if len(known) <= _FEW else "unknown key"


def _explain(error: Any) -> Iterator[Problem]:
    keys: Keys = tuple(error.absolute_path)
    value = error.instance
    match error.validator:
        case "additionalProperties" if isinstance(value, dict):
            known = list(error.schema.get("properties", {}))
            for key in sorted(set(value) - set(known), key=str):
                yield Problem(keys=(*keys, str(key)), text=describe_unknown_key(str(key), known))
        case "required":
            absent = next(key for key in error.validator_value if key not in value and repr(key) in error.message)
            yield Problem(keys=(*keys, absent), text="is missing")
        case "type":
            names = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
            wanted = " or ".join(_NOUNS.get(name, name) for name in names)
            yield Problem(keys=keys, text=f"{_abbreviate(value)} must be {wanted}")
        case "enum":
            choices = [str(choice) for choice in error.validator_value]
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Problem(keys=keys, text=f"{_abbreviate(value)} must be one of {', '.join(choices)}{hint}")
        case "anyOf" if error.schema.get("x-kubernetes-int-or-string"):
            yield Problem(keys=keys, text=f"{_abbreviate(value)} must be a number or a quantity")
        case _:
            yield Problem(keys=keys, text=error.message)


_NOUNS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def _abbreviate(value: YamlValue) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
