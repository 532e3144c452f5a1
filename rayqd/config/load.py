"""Files and flags to a Config. Later files win over earlier ones, flags over files, later flags over earlier ones."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayqd.config.arguments import Arguments, Flag, read_arguments
from rayqd.config.files import read_toml
from rayqd.config.sections import Config
from rayqd.config.settings import Setting, inside, nearest, section_names, settings, value_text
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A setting as it was given."""

    key: str
    value: object
    place: str  # how an error shows it: "a.toml: learner.lr = 1", "flag --learner.lr=1"


def load_config(argv_parts: Sequence[str]) -> Config:
    """The Config that `[@file.toml ...] [--section.field VALUE ...]` describes.

    Raises ConfigError, in one line, at an unknown key, a value of the wrong type or out of range, a file that is
    missing or no TOML, and an argument that is neither a file nor a flag.
    """
    arguments = read_arguments(argv_parts)
    if arguments.words:
        raise ConfigError(unexpected(arguments.words[0]))
    return config_of(arguments)


def config_of(arguments: Arguments, before: Sequence[Path] = ()) -> Config:
    """The Config of arguments already read; the files `before` count as the earliest ones."""
    return resolve(assignments(arguments, before))


def assignments(arguments: Arguments, before: Sequence[Path] = ()) -> list[Assignment]:
    """What the files say and then what the flags say, unchecked."""
    given = [each for path in [*before, *arguments.files] for each in _from_file(path)]
    return given + [_from_flag(flag) for flag in arguments.flags]


def resolve(given: Sequence[Assignment]) -> Config:
    """The Config of `given`, of which later ones win. Raises ConfigError as `load_config` does."""
    problems = [problem for each in given if (problem := _unknown(each))]
    final = {each.key: each for each in given if each.key in settings()}
    problems += [
        f"{each.place}: must be {settings()[each.key].must_be}" for each in final.values() if _not_finite(each)
    ]
    try:
        config = Config.model_validate(_nested(final), strict=True)
    except ValidationError as error:
        problems += [_explain(each, final) for each in error.errors()]
    else:
        if not problems:
            return config
    raise first_of(problems)


def first_of(problems: Sequence[str]) -> ConfigError:
    """The first of several problems, and how many more there are."""
    told = list(dict.fromkeys(problems))
    more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
    return ConfigError(told[0] + more)


def unexpected(word: str) -> str:
    """What to say of an argument that is neither a file nor a flag."""
    if word.endswith(".toml"):
        return f'unexpected argument "{word}"; a file of settings is given as @{word}'
    if word.startswith("-"):
        return f'unexpected argument "{word}"; settings are given as --section.field VALUE'
    return f'unexpected argument "{word}"; give settings as @file.toml or --section.field VALUE'


def _from_file(path: Path) -> Iterator[Assignment]:
    for key, value in _flat(read_toml(path), ""):
        yield Assignment(key=key, value=_none(value, key), place=f"{path}: {key} = {short(value_text(value))}")


def _from_flag(flag: Flag) -> Assignment:
    shown = flag.text if flag.text.isprintable() else json.dumps(flag.text)
    setting = settings().get(flag.key)
    value = parsed(flag.text, setting) if setting else flag.text
    return Assignment(key=flag.key, value=value, place=f"flag --{flag.key}={short(shown)}")


def _flat(table: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and (key in section_names() or (value and key not in settings())):
            yield from _flat(cast(dict[str, Any], value), f"{key}.")
        else:
            yield key, value


def parsed(text: str, setting: Setting) -> object:
    """`text` as the type of `setting`; itself where it cannot be, which validation then refuses."""
    if setting.optional and text.lower() == "none":
        return None
    if setting.kind in ("string", "path"):
        return text
    if setting.kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), text)
    if setting.kind == "array" and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        if setting.kind == "integer":
            return int(text)
        return float(text) if setting.kind == "number" else json.loads(text)
    except ValueError:
        return text


def _none(value: object, key: str) -> object:
    """None where a file says "none" for a setting that takes it."""
    setting = settings().get(key)
    return None if setting and setting.optional and value == "none" else value


def _not_finite(each: Assignment) -> bool:
    return isinstance(each.value, float) and not math.isfinite(each.value)


def _nested(final: dict[str, Assignment]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, each in final.items():
        section, _, leaf = key.rpartition(".")
        table = tree.setdefault(section, {}) if section else tree
        table[leaf] = 1.0 if _not_finite(each) else _typed(each)
    return tree


def _typed(each: Assignment) -> object:
    return Path(each.value) if settings()[each.key].kind == "path" and isinstance(each.value, str) else each.value


def _unknown(each: Assignment) -> str | None:
    if each.key in settings():
        return None
    if each.key in section_names():
        return f"{each.place}: is a section; set {', '.join(inside(each.key))}"
    return f"{each.place}: unknown setting {each.key}; {_hint(each.key)}"


def _hint(key: str) -> str:
    section = key.partition(".")[0]
    if section == "sweep":
        return "the section [sweep] is for `rayqd sweep`"
    near = nearest(key)
    if near:
        return f"did you mean {near}?"
    if section in section_names():
        return f"there are {', '.join(inside(section))}"
    near_sections = difflib.get_close_matches(section, section_names(), n=1)
    return (
        f"did you mean section {near_sections[0]}?" if near_sections else "`rayqd distill --help` lists every setting"
    )


def _explain(error: ErrorDetails, final: dict[str, Assignment]) -> str:
    location = [str(part) for part in error["loc"]]
    key = next((key for end in (2, 1) if (key := ".".join(location[:end])) in settings()), None)
    if key is None:
        return _explain_relation(".".join(location), error["msg"].removeprefix("Value error, "), final)
    setting, each = settings()[key], final[key]
    near = difflib.get_close_matches(str(each.value), setting.choices, n=1) if len(setting.choices) > 1 else []
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{each.place}: must be {setting.must_be}{hint}"


def _explain_relation(section: str, message: str, final: dict[str, Assignment]) -> str:
    """An error between several settings stands where the last of those it names was given."""
    named = [each for key, each in final.items() if key.startswith(section) and key.rpartition(".")[2] in message]
    place = named[-1].place if named else section or "settings"
    return f"{place}: {message}"


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
