"""`data.sources`: its tables, and the fields of one of them given by themselves, as --data.sources.0.weight 2.

A table is named by its position, or by its name. What names one data set (data.source with its split, subset and
columns) and data.sources take each other's place where one is in a later file, or a flag; in one file they are both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import cast

from pydantic_core import ErrorDetails

from rayqd.config.assignment import Assignment
from rayqd.config.hints import nearest_word
from rayqd.config.sections.markers import OfOneSource
from rayqd.config.sections.sources import SourceConfig, label_of_source
from rayqd.config.sections.training import ONE_AND_SEVERAL
from rayqd.config.settings import Group, Setting, group_of, groups, settings, settings_with, value_text

SOURCES = "data.sources"
_FIELD = re.compile(re.escape(SOURCES) + r"\.(?P<table>[^.]+)\.(?P<field>[^.]+)")


def find_setting(key: str) -> Setting | None:
    """Return the setting at `key`, also a field of one of the tables in data.sources; None where there is none."""
    if key in settings():
        return settings()[key]
    field = _FIELD.fullmatch(key)
    setting = source_fields().get(field["field"]) if field else None
    return replace(setting, key=key, markers=settings()[SOURCES].markers) if setting else None


@cache
def source_fields() -> dict[str, Setting]:
    """Return the fields of a table in data.sources by their names."""
    return {setting.key.rpartition(".")[2]: setting for setting in source_group().settings}


def source_group() -> Group:
    """Return the fields of a table in data.sources as a section, whose names have an N for the table's."""
    return group_of(f"{SOURCES}.N", SourceConfig, SourceConfig.model_fields)


def all_groups() -> Iterator[Group]:
    """Yield the sections, and after [data] the fields of its tables."""
    for group in groups():
        yield group
        if group.name == SOURCES.partition(".")[0]:
            yield source_group()


def is_field(key: str) -> bool:
    """Return whether `key` is written as a field of one of the tables, whether there is such a field or not."""
    return _FIELD.fullmatch(key) is not None


def explain_unknown_field(key: str) -> str:
    """Complete "unknown setting data.sources.0.wieght; "."""
    name = key.rpartition(".")[2]
    near = nearest_word(name, source_fields())
    return f"did you mean {key.removesuffix(name)}{near}?" if near else f"there are {', '.join(source_fields())}"


def merge_fields(given: Sequence[Assignment]) -> tuple[list[Assignment], list[str]]:
    """Return `given` with the fields given by themselves put into the list before them; and what is wrong with them.

    Of data.sources and what names one data set, those of an earlier layer are left out.
    """
    problems: list[str] = []
    merged: list[Assignment] = []
    sources: Assignment | None = None
    for assignment in _without_replaced(given):
        merged.append(assignment)
        if assignment.key == SOURCES:
            is_list = isinstance(assignment.value, list | tuple)  # what is none, validation refuses
            merged[-1] = sources = replace(assignment, value=_as_tables(assignment.value)) if is_list else assignment
        elif is_field(assignment.key) and find_setting(assignment.key):
            try:
                merged[-1] = sources = _with_field(sources, assignment)
            except ValueError as error:
                problems.append(str(error))
    return merged, problems


def explain_both(given: Sequence[Assignment]) -> list[str]:
    """Say where one file, or the flags, name several data sets and the default one, which nobody else would see."""
    layers = {a.layer for a in given if a.key == SOURCES and a.value}
    default = settings()["data.source"].default
    one = [a for a in given if a.key == "data.source" and a.value == default and a.layer in layers]
    return [f"{a.origin}: data.source {ONE_AND_SEVERAL}" for a in one]


def explain_invalid_source(error: ErrorDetails, given: Assignment) -> str | None:
    """Say what is wrong with one of the tables; None where the list as a whole is."""
    location = error["loc"][2:]
    if not location or not isinstance(location[0], int):
        return None
    position, name = location[0], str(location[1]) if len(location) > 1 else ""
    table = _as_tables(given.value)[position]
    origin = given.of_fields.get((position, name))
    if not isinstance(table, Mapping):
        return f"{given.origin}: data.sources[{position}] must be a table with source, or a data set's name"
    fields = cast("Mapping[str, object]", table)
    of = f" ({fields['source']})" if isinstance(fields.get("source"), str) else ""
    origin = origin or f"{given.origin.partition(' = ')[0].partition('=')[0]}[{position}]{of}"
    if error["type"] == "missing":
        return f"{origin}: has no {name}: a file, a directory, a URL, or the id of a data set"
    if error["type"] == "extra_forbidden":
        return f"{origin}: unknown field {name}; {_hint(name)}"
    what = name if (position, name) in given.of_fields else f"{name} = {value_text(fields.get(name))}"
    if error["type"] == "value_error":
        return f"{origin}: {name}: {error['msg'].removeprefix('Value error, ')}"
    return f"{origin}: {what} must be {source_fields()[name].must_be}"


def _hint(name: str) -> str:
    near = nearest_word(name, source_fields())
    return f"did you mean {near}?" if near else f"there are {', '.join(source_fields())}"


def _without_replaced(given: Sequence[Assignment]) -> list[Assignment]:
    one = settings_with(OfOneSource)
    of_several = max((a.layer for a in given if a.key == SOURCES and a.value), default=-1)
    of_one = max((a.layer for a in given if a.key == "data.source"), default=-1)
    if of_several > of_one:
        return [a for a in given if a.key not in one or a.layer >= of_several]
    if of_one > of_several:
        return [a for a in given if (a.key != SOURCES and not is_field(a.key)) or a.layer >= of_one]
    return list(given)


def _as_tables(value: object) -> list[object]:
    """Return the tables, a name alone as one; none of a value that is no list."""
    if not isinstance(value, list | tuple):
        return []
    entries = cast("Sequence[object]", value)
    return [{"source": entry} if isinstance(entry, str) else entry for entry in entries]


def _with_field(sources: Assignment | None, given: Assignment) -> Assignment:
    """Return `sources` with one field replaced. Raises ValueError with what there is where the table is not there."""
    found = _FIELD.fullmatch(given.key)
    assert found
    tables = _as_tables(sources.value) if sources else []
    position = _find_table(found["table"], tables)
    if sources is None or position is None:
        raise ValueError(f"{given.origin}: {_no_table(found['table'], tables)}")
    table = tables[position]
    if isinstance(table, Mapping):  # what is no table, validation refuses
        tables[position] = {**cast("Mapping[str, object]", table), found["field"]: given.value}
    origins = {**sources.of_fields, (position, found["field"]): given.origin}
    return replace(sources, value=tables, of_fields=origins)


def explain_missing_table(key: str, sources: Sequence[SourceConfig]) -> str | None:
    """Say what tables there are where `key` is a field of one that is not among `sources`; None where it is."""
    found = _FIELD.fullmatch(key)
    if found is None or _find_table(found["table"], sources) is not None:
        return None
    return _no_table(found["table"], sources)


def _no_table(name: str, tables: Sequence[object]) -> str:
    there = ", ".join(f"{i} ({_label(table)})" for i, table in enumerate(tables))
    return f"data.sources has no {name}; it has {there or 'no data sets'}"


def _find_table(name: str, tables: Sequence[object]) -> int | None:
    if name.isdecimal():
        return int(name) if int(name) < len(tables) else None
    labels = [_label(table) for table in tables]
    return labels.index(name) if labels.count(name) == 1 else None


def _label(table: object) -> str:
    if isinstance(table, SourceConfig):
        return table.label
    if not isinstance(table, Mapping):
        return str(table)
    fields = cast("Mapping[str, object]", table)
    return str(fields.get("name") or label_of_source(str(fields.get("source", ""))))
