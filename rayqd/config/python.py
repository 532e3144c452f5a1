"""Settings given as keywords in Python: checked as strictly as those of a file, and refused in the same words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError

from rayqd.config.load import Assignment, explain_invalid, explain_not_finite, explain_unknown, first_error, shorten
from rayqd.config.sections import Config
from rayqd.config.sections.sources import SourceConfig
from rayqd.config.settings import Setting, section_name, settings, value_text
from rayqd.config.source_list import SOURCES
from rayqd.errors import ConfigError


def prepare(model: type[BaseModel], fields: Mapping[str, object]) -> dict[str, object]:
    """Return `fields` as strict validation takes them: paths may be text, lists tuples. ConfigError at inf or nan."""
    name = section_name(model)
    if problems := explain_not_finite(_assignments(name, fields)):
        raise first_error(problems)
    return {leaf: _prepare_value(f"{name}.{leaf}".lstrip("."), value) for leaf, value in fields.items()}


def describe_invalid(model: type[BaseModel], fields: Mapping[str, object], error: ValidationError) -> ConfigError:
    """Return the error of ours for `fields` that `model`, which is Config or one of its sections, refuses."""
    if model is SourceConfig:
        return _describe_invalid_source(fields, error)
    name = section_name(model)
    given = {assignment.key: assignment for assignment in _assignments(name, fields)}
    problems = [problem for assignment in given.values() if (problem := explain_unknown(assignment))]
    for details in error.errors():
        if details["type"] not in ("extra_forbidden", "model_type"):  # both are unknown settings, told above
            details["loc"] = (*([name] if name else []), *details["loc"])
            problems.append(explain_invalid(details, given))
    return first_error(problems)


def _describe_invalid_source(fields: Mapping[str, object], error: ValidationError) -> ConfigError:
    """Return the same for one of `data.sources` by itself."""
    given = Assignment(key=SOURCES, value=[fields], origin=SOURCES)
    problems: list[str] = []
    for details in error.errors():
        details["loc"] = ("data", "sources", 0, *details["loc"])
        problems.append(explain_invalid(details, {SOURCES: given}))
    return first_error(problems)


def check_is_config(value: object) -> None:
    """Raise ConfigError where a command's function is called with anything but a Config."""
    if not isinstance(value, Config):
        raise ConfigError(
            f"the settings must be a Config, got {type(value).__name__}: rayqd.Config(name=..., model={{...}}), or "
            'rayqd.config.load_config(["@file.toml"])'
        )


def _prepare_value(key: str, value: object) -> object:
    if isinstance(value, Mapping):
        table = cast("Mapping[str, object]", value)
        return {leaf: _prepare_value(f"{key}.{leaf}", member) for leaf, member in table.items()}
    setting = settings().get(key)
    return _as_declared(value, setting) if setting else value


def _as_declared(value: object, setting: Setting) -> object:
    if setting.kind == "path" and isinstance(value, str):
        return Path(value)
    return list(cast("tuple[object, ...]", value)) if setting.kind == "array" and isinstance(value, tuple) else value


def _assignments(prefix: str, fields: Mapping[str, object]) -> Iterator[Assignment]:
    for leaf, value in fields.items():
        key = f"{prefix}.{leaf}".lstrip(".")
        if isinstance(value, Mapping) and key not in settings():
            yield from _assignments(key, cast("Mapping[str, object]", value))
        elif not isinstance(value, BaseModel):
            written = cast("object", value)
            yield Assignment(key=key, value=written, origin=f"{key} = {shorten(value_text(written))}")
