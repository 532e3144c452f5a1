"""Files and flags to a Config. Later files win over earlier ones, flags over files, later flags over earlier ones."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayqd.config.arguments import Arguments, Flag, read_arguments
from rayqd.config.assignment import Assignment
from rayqd.config.hints import describe_unexpected, hint_for_setting, nearest_choice
from rayqd.config.sections import Config
from rayqd.config.settings import (
    Setting,
    nest_by_section,
    section_names,
    settings,
    settings_in,
    value_text,
)
from rayqd.config.source_list import (
    SOURCES,
    explain_both,
    explain_invalid_source,
    explain_unknown_field,
    find_setting,
    is_field,
    merge_fields,
)
from rayqd.config.toml import TomlTable, TomlValue, read_toml
from rayqd.errors import ConfigError


def load_config(argv_parts: Sequence[str]) -> Config:
    """Return the Config that `[@file.toml ...] [--section.field VALUE ...]` describes.

    Raises ConfigError, in one line, at an unknown key, a value of the wrong type or out of range, a file that is
    missing or no TOML, and an argument that is neither a file nor a flag.
    """
    arguments = read_arguments(argv_parts)
    if arguments.words:
        raise ConfigError(describe_unexpected(arguments.words[0]))
    return config_of(arguments)


def config_of(arguments: Arguments, before: Sequence[Path] = (), unread: Collection[str] = ()) -> Config:
    """Return the Config of arguments already read; the files `before` count as the earliest ones.

    `unread`: settings that a command does not use and takes from no file, as they go with others that it may change.
    """
    num_files = len(before) + len(arguments.files)
    given = assignments(arguments, before)
    return resolve([each for each in given if each.key not in unread or each.layer >= num_files])


def assignments(arguments: Arguments, before: Sequence[Path] = ()) -> list[Assignment]:
    """Return what the files say and then what the flags say, unchecked."""
    files = [*before, *arguments.files]
    from_files = [assignment for layer, path in enumerate(files) for assignment in _from_file(path, layer)]
    return from_files + [_from_flag(flag, len(files)) for flag in arguments.flags]


def resolve(given: Sequence[Assignment]) -> Config:
    """Return the Config of `given`, of which later ones win. Raises ConfigError as `load_config` does."""
    problems = [problem for assignment in given if (problem := explain_unknown(assignment))]
    merged, unplaced = merge_fields(given)
    problems += explain_both(given)
    final = {assignment.key: assignment for assignment in merged if assignment.key in settings()}
    problems += unplaced
    problems += explain_not_finite(final.values())
    tables = nest_by_section({key: _typed_value(assignment) for key, assignment in final.items()})
    try:
        config = Config.model_validate(tables.pop("", {}) | tables, strict=True)
    except ValidationError as error:
        problems += [explain_invalid(details, final) for details in error.errors()]
    else:
        if not problems:
            return config
    raise first_error(problems)


def explain_not_finite(given: Iterable[Assignment]) -> list[str]:
    """Say of each inf and nan what the setting must be; validation lets some of them pass."""
    return [
        f"{assignment.origin}: must be {settings()[assignment.key].must_be}"
        for assignment in given
        if assignment.key in settings() and _is_not_finite(assignment)
    ]


def first_error(problems: Sequence[str]) -> ConfigError:
    """Return the first of several problems, with the number of the others."""
    distinct = list(dict.fromkeys(problems))
    more = f" (and {len(distinct) - 1} more)" if len(distinct) > 1 else ""
    return ConfigError(distinct[0] + more)


def flag_origin(flag: Flag) -> str:
    """Return how an error shows `flag`."""
    return f"flag --{flag.key}={shorten(flag.text if flag.text.isprintable() else json.dumps(flag.text))}"


def parse_value(text: str, setting: Setting) -> object:
    """Read `text` as the type of `setting`; return it as it is where it cannot be, which validation then refuses."""
    if setting.optional and text.lower() == "none":
        return None
    if setting.kind in ("string", "path"):
        return text
    if setting.kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    if setting.kind == "array" and not text.lstrip().startswith(("[", "{") if setting.key == SOURCES else "["):
        return split_list(text)
    if setting.kind == "object" and not text.lstrip().startswith("{"):
        return _split_pairs(text)
    try:
        if setting.kind == "integer":
            return int(text)
        return float(text) if setting.kind == "number" else json.loads(text)
    except ValueError:
        return text


def split_list(text: str) -> list[str]:
    """Return the parts of `A,B,...` without the space around them; empty ones are dropped."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _split_pairs(text: str) -> object:
    """Return the pairs of `NAME=VALUE,...`, each value as JSON or else as text; `text` itself where it is no pairs."""
    pairs = [part.partition("=") for part in split_list(text)]
    if not all(name and equals for name, equals, _ in pairs):
        return text
    return {name.strip(): _json_or_text(value.strip()) for name, _, value in pairs}


def _json_or_text(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def shorten(text: str) -> str:
    """Return `text` in at most 80 characters."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def _from_file(path: Path, layer: int) -> Iterator[Assignment]:
    for key, value in _flatten(read_toml(path), ""):
        origin = f"{path}: {key} = {shorten(value_text(value))}"
        yield Assignment(key=key, value=_none_as_written(value, key), origin=origin, layer=layer)


def _from_flag(flag: Flag, layer: int) -> Assignment:
    setting = find_setting(flag.key)
    value = parse_value(flag.text, setting) if setting else flag.text
    return Assignment(key=flag.key, value=value, origin=flag_origin(flag), layer=layer)


def _flatten(table: TomlTable, prefix: str) -> Iterator[tuple[str, TomlValue]]:
    for name, value in table.items():
        key = prefix + name
        is_setting = find_setting(key) is not None and key != SOURCES
        if isinstance(value, dict) and (key in section_names() or (value and not is_setting)):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _none_as_written(value: TomlValue, key: str) -> TomlValue | None:
    """Return None where a file says "none" for a setting that takes it: TOML has no word of its own."""
    setting = find_setting(key)
    return None if setting and setting.optional and value == "none" else value


def _is_not_finite(assignment: Assignment) -> bool:
    return isinstance(assignment.value, float) and not math.isfinite(assignment.value)


def _typed_value(assignment: Assignment) -> object:
    """Return what pydantic in strict mode needs; 1.0 for inf and nan, which are refused before."""
    if _is_not_finite(assignment):
        return 1.0
    is_path = settings()[assignment.key].kind == "path" and isinstance(assignment.value, str)
    return Path(str(assignment.value)) if is_path else assignment.value


def explain_unknown(assignment: Assignment) -> str | None:
    """Say what is near where the key is no setting; None where it is one."""
    key, origin = assignment.key, assignment.origin
    if find_setting(key):
        return None
    if is_field(key):
        return f"{origin}: unknown setting {key}; {explain_unknown_field(key)}"
    if key in section_names():
        return f"{origin}: is a section; set {', '.join(settings_in(key))}"
    return f"{origin}: unknown setting {key}; {hint_for_setting(key)}"


def explain_invalid(error: ErrorDetails, final: Mapping[str, Assignment]) -> str:
    """Say in one line what validation found, where it was given."""
    location = [str(part) for part in error["loc"]]
    key = next((key for end in (2, 1) if (key := ".".join(location[:end])) in settings()), None)
    if key is None:
        return _explain_relation(".".join(location), error["msg"].removeprefix("Value error, "), final)
    if key == SOURCES and (what := explain_invalid_source(error, final[key])):
        return what
    if error["type"] == "value_error":
        return f"{final[key].origin}: {error['msg'].removeprefix('Value error, ')}"
    return explain_value(final[key], settings()[key])


def explain_value(assignment: Assignment, setting: Setting) -> str:
    """Say what the value of `setting` must be, and which choice is the nearest to the one that was given."""
    near = nearest_choice(assignment.value, setting) if len(setting.choices) > 1 else None
    return f"{assignment.origin}: must be {setting.must_be}{f'; did you mean {near}?' if near else ''}"


def _explain_relation(section: str, message: str, final: Mapping[str, Assignment]) -> str:
    """Put an error between several settings where the last of those it names was given."""
    named = [given for key, given in final.items() if key.startswith(section) and key.rpartition(".")[2] in message]
    origin = named[-1].origin if named else section or "settings"
    return f"{origin}: {message}"
