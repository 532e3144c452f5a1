"""The settings as a flat table: dotted key, help text, what a value must be. Help and errors both read it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypedDict, TypeVar, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rayqd.config.sections import Config
from rayqd.config.sections.base import TASK_METRIC
from rayqd.config.sections.markers import Marker
from rayqd.config.sections.sources import SourceConfig
from rayqd.extensions import IMPORT_PATH

M = TypeVar("M", bound=Marker)

_OTHER_FORMS = {IMPORT_PATH: "package.module:name", TASK_METRIC: "TASK/METRIC"}


class _Schema(TypedDict, total=False):
    """A field as pydantic describes it in JSON schema, as far as settings have need of it."""

    type: str
    format: str
    anyOf: list[_Schema]
    enum: list[str]
    const: str
    description: str
    pattern: str
    items: dict[str, object]
    minimum: float
    exclusiveMinimum: float
    maximum: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One leaf of Config."""

    key: str  # "learner.lr"
    text: str  # its help
    kind: str  # JSON's name of the type: boolean, integer, number, string, array, object; or path
    optional: bool  # takes none
    choices: tuple[str, ...]  # every value there is, if they can be listed
    takes_import_path: bool  # besides them also package.module:name
    other_form: str  # what it takes besides them; "" where that is nothing
    must_be: str  # "a number above 0"; completes "learner.lr must be"
    default: object
    markers: tuple[Marker, ...]  # of its field, then of its section's

    @property
    def is_required(self) -> bool:
        """Return whether it has no default, and must be given."""
        return self.default is PydanticUndefined

    def marker(self, kind: type[M]) -> M | None:
        """Return the first marker of `kind`, None if the setting carries none."""
        return next((marker for marker in self.markers if isinstance(marker, kind)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A section, or the settings that stand outside of any (name "")."""

    name: str
    text: str
    settings: tuple[Setting, ...]


@cache
def groups() -> tuple[Group, ...]:
    """Return Config's sections in their order, the settings outside of any first."""
    top = group_of("", Config, Config.model_fields)
    sections = (
        group_of(name, section, section.model_fields, _markers(Config.model_fields[name]))
        for name, section in _sections().items()
    )
    return (top, *sections)


@cache
def settings() -> dict[str, Setting]:
    """Return every setting by its dotted key."""
    return {setting.key: setting for group in groups() for setting in group.settings}


def settings_with(*kinds: type[Marker]) -> list[str]:
    """Return the keys of the settings that carry a marker of one of `kinds`, in the order of the sections."""
    return [key for key, setting in settings().items() if any(setting.marker(kind) for kind in kinds)]


def section_names() -> list[str]:
    """Return the names of the sections in the order of Config."""
    return list(_sections())


def section_name(model: type[BaseModel]) -> str:
    """Return the name of the section that `model` is; "" for Config itself, and "sweep" for what only a sweep has."""
    if model is Config:
        return ""
    if model is SourceConfig:
        return "data.sources"
    return next((name for name, section in _sections().items() if section is model), "sweep")


def settings_in(section: str) -> list[str]:
    """Return the keys of the settings in `section`, those outside of any for "", none for what is no section."""
    return [setting.key for group in groups() if group.name == section for setting in group.settings]


def nest_by_section(values: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Return `values`, by dotted key, as a table a section; those outside of any are in the table ""."""
    tables: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, _, leaf = key.rpartition(".")
        tables.setdefault(section, {})[leaf] = value
    return tables


def nearest_settings(key: str) -> list[str]:
    """Return the keys that somebody who wrote `key` may have meant: same last part, else the one most alike, if any."""
    section, _, leaf = key.rpartition(".")
    same_leaf = [name for name in settings() if _leaf(name) == leaf]
    if same_leaf:
        return difflib.get_close_matches(key, same_leaf, n=1, cutoff=0.0) if section else same_leaf
    siblings = difflib.get_close_matches(leaf, [_leaf(name) for name in settings_in(section)], n=1, cutoff=0.6)
    if siblings:
        return [f"{section}.{siblings[0]}" if section else siblings[0]]
    by_leaf = {_leaf(name): name for name in settings()}
    like_leaf = [by_leaf[name] for name in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.75)]
    return (like_leaf + difflib.get_close_matches(key, settings(), n=1, cutoff=0.8))[:1]


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def group_of(
    name: str, model: type[BaseModel], fields: Mapping[str, FieldInfo], markers: tuple[Marker, ...] = ()
) -> Group:
    """Return the settings that `fields` of `model` are, as a section called `name` that carries `markers` itself."""
    schemas: Mapping[str, _Schema] = model.model_json_schema()["properties"]
    leaves = [field for field in fields if name or field not in _sections()]
    text = (model.__doc__ or "").strip()
    prefix = f"{name}." if name else ""
    return Group(
        name=name,
        text=text,
        settings=tuple(
            _setting(prefix + leaf, schemas[leaf], fields[leaf].default, (*_markers(fields[leaf]), *markers))
            for leaf in leaves
        ),
    )


def _markers(field: FieldInfo) -> tuple[Marker, ...]:
    return tuple(marker for marker in field.metadata if isinstance(marker, Marker))


def _setting(key: str, schema: _Schema, default: object, markers: tuple[Marker, ...]) -> Setting:
    variants = schema.get("anyOf", [schema])
    value = next(variant for variant in variants if variant.get("type") != "null")
    optional = any(variant.get("type") == "null" for variant in variants)
    patterns = [variant.get("pattern") for variant in variants]
    other_form = next((form for pattern, form in _OTHER_FORMS.items() if pattern in patterns), "")
    words = [variant["const"] for variant in variants if "const" in variant and variant is not value]
    choices = tuple(value.get("enum") or ([value["const"]] if "const" in value else []))
    return Setting(
        key=key,
        text=schema.get("description", ""),
        kind="path" if value.get("format") == "path" else value.get("type", ""),
        optional=optional,
        choices=choices,
        takes_import_path=IMPORT_PATH in patterns,
        other_form=other_form,
        must_be=_must_be(value, choices)
        + "".join(f", or {word}" for word in words)
        + (f", or {other_form}" if other_form else "")
        + (", or none" if optional else ""),
        default=default,
        markers=markers,
    )


def _must_be(schema: _Schema, choices: tuple[str, ...]) -> str:
    if choices:
        return ("one of " if len(choices) > 1 else "") + ", ".join(choices)
    nouns = {
        "boolean": "true or false",
        "integer": "a whole number",
        "number": "a number",
        "array": "a list of names",
        "object": "NAME=VALUE,...",
    }
    if schema.get("items", {}).get("type") == "integer":
        return "a list of whole numbers"
    if "$ref" in schema.get("items", {}):
        return "a list of tables, or of names"
    noun = nouns.get(schema.get("type", ""), "a path" if schema.get("format") == "path" else "text")
    if "pattern" in schema:
        return f"{noun} of the form {schema['pattern']}"
    return f"{noun} {_range(schema)}".strip()


def _range(schema: _Schema) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum")
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    parts = [f"of at least {low:g}" if low is not None else "", f"above {above:g}" if above is not None else ""]
    parts.append(f"at most {high:g}" if high is not None else "")
    return " and ".join(part for part in parts if part)


def value_text(value: object) -> str:
    """Write `value` as TOML does; "none" for None, which TOML has no word for."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(value_text(item) for item in value)}]"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, BaseModel):  # a table of a list
        given = value.model_dump(exclude_defaults=True).items()
        return f"{{{', '.join(f'{key} = {value_text(item)}' for key, item in given)}}}"
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return f"{{{', '.join(f'{json.dumps(key, ensure_ascii=False)} = {value_text(item)}' for key, item in items)}}}"
    return json.dumps(str(value), ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # TOML forbids a bare DEL, JSON does not
