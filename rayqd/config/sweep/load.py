"""Files and flags to a sweep. [sweep] is a section like the others: later files win, flags over files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayqd.config.arguments import Arguments, Flag, read_arguments
from rayqd.config.load import Assignment, assignments, first_of, parsed, resolve, short, unexpected
from rayqd.config.sections import Config
from rayqd.config.sections.sweep import SweepConfig
from rayqd.config.settings import settings, value_text
from rayqd.config.sweep.checks import explain, not_swept, problems_of, unknown
from rayqd.config.sweep.fields import OVER, is_own, split, sweep_settings
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """What all trials have in common, and what they differ in."""

    sweep: SweepConfig
    common: tuple[Assignment, ...]

    def config(self, values: Mapping[str, object] | None = None) -> Config:
        """The Config with `values`, by dotted name, laid over it. Raises ConfigError at one that it refuses."""
        over = [
            Assignment(key=key, value=_none(key, value), place=f"{OVER}{key}: {short(value_text(value))}")
            for key, value in (values or {}).items()
        ]
        return resolve([*self.common, *over])


def load_sweep(argv_parts: Sequence[str]) -> SweepSpec:
    """The sweep that `[@file.toml ...] [--section.field VALUE ...]` describes.

    Raises ConfigError, in one line, as `load_config` does, and at a setting to be swept that there is not.
    """
    arguments = read_arguments(argv_parts)
    if arguments.words:
        raise ConfigError(unexpected(arguments.words[0]))
    return sweep_of(arguments)


def sweep_of(arguments: Arguments) -> SweepSpec:
    """Return the sweep of arguments already read."""
    given = assignments(replace(arguments, flags=tuple(flag for flag in arguments.flags if not is_own(flag.key))))
    own = [each for each in given if is_own(each.key)]
    own += [_from_flag(flag) for flag in arguments.flags if is_own(flag.key)]
    common = [each for each in given if not is_own(each.key)]
    if not any(each.key == "name" for each in common):
        common.append(Assignment(key="name", value="sweep", place="name"))
    config = resolve(common)
    return SweepSpec(sweep=_sweep(own, config), common=tuple(common))


def _none(key: str, value: object) -> object:
    return None if value == "none" and settings()[key].optional else value


def _from_flag(flag: Flag) -> Assignment:
    place = f"flag --{flag.key}={short(flag.text if flag.text.isprintable() else json.dumps(flag.text))}"
    return Assignment(key=flag.key, value=_flag_value(flag), place=place)


def _flag_value(flag: Flag) -> object:
    if flag.key in sweep_settings():
        return parsed(flag.text, sweep_settings()[flag.key])
    key, part = split(flag.key.removeprefix(OVER))
    if part in ("log", "integer"):
        return {"": True, "true": True, "false": False}.get(flag.text.lower(), flag.text)
    if key not in settings():
        return flag.text
    if part:
        return parsed(flag.text, settings()[key])
    if flag.text.lstrip().startswith("["):
        try:
            return json.loads(flag.text)
        except ValueError:
            return flag.text
    words = [word.strip() for word in flag.text.split(",") if word.strip()]
    return [word if word == "none" else parsed(word, settings()[key]) for word in words]  # TOML has no other none


def _sweep(own: Sequence[Assignment], config: Config) -> SweepConfig:
    final = {each.key: each for each in own}
    over, places = _over(own)
    problems = [problem for each in own if (problem := unknown(each))]
    problems += [f"{places[key]}: {problem}" for key in over for problem in not_swept(key, config)]
    fields = {key.removeprefix("sweep."): each.value for key, each in final.items() if key in sweep_settings()}
    try:
        sweep = SweepConfig.model_validate(fields | {"over": over}, strict=True)
    except ValidationError as error:
        problems += [explain(each, final, places) for each in error.errors() if _is_meant(each, over)]
    else:
        problems = problems or list(problems_of(sweep, places))
        if not problems:
            return sweep
    raise first_of(problems)


def _is_meant(error: ErrorDetails, over: Mapping[str, Any]) -> bool:
    """Of a range that is wrong pydantic also says that it is no list, and the other way about."""
    if error["loc"][0] != "over":
        return True
    _, key, *rest = map(str, error["loc"])
    return isinstance(over[key], dict) == (rest[:1] != ["list[any]"])


def _over(own: Sequence[Assignment]) -> tuple[dict[str, Any], dict[str, str]]:
    """Lists, and ranges as tables, by setting; and where each was given."""
    over: dict[str, Any] = {}
    places: dict[str, str] = {}
    for each in own:
        if not each.key.startswith(OVER):
            continue
        key, part = split(each.key.removeprefix(OVER))
        places[key] = each.place
        if not part:
            over[key] = each.value
            continue
        before = over.get(key)
        whole = {"integer": True} if key in settings() and settings()[key].kind == "integer" else {}
        over[key] = {**(before if isinstance(before, dict) else whole), part: each.value}
    return over, places
