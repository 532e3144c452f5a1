"""Files and flags to a sweep. [sweep] is a section like the others: later files win, flags over files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rayqd.config.arguments import Arguments, Flag
from rayqd.config.assignment import Assignment
from rayqd.config.load import first_error, flag_origin, parse_value, resolve, shorten, split_list
from rayqd.config.own_section import OVER_ALL, read_files_and_flags, take_apart
from rayqd.config.sections import Config
from rayqd.config.sections.sweep import SweepConfig
from rayqd.config.settings import Setting, value_text
from rayqd.config.source_list import find_setting
from rayqd.config.sweep.checks import explain, explain_unknown, find_problems, why_not_swept
from rayqd.config.sweep.fields import OVER, is_own, split_part, sweep_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """What all trials have in common, and what they differ in."""

    sweep: SweepConfig
    common: tuple[Assignment, ...]

    def config(self, values: Mapping[str, object] | None = None) -> Config:
        """Return the Config with `values`, by dotted name, laid over it. Raises ConfigError at one that it refuses."""
        over = [
            Assignment(
                key=key,
                value=_read_none(key, value),
                origin=f"{OVER}{key}: {shorten(value_text(value))}",
                layer=OVER_ALL,
            )
            for key, value in (values or {}).items()
        ]
        return resolve([*self.common, *over])


def load_sweep(argv_parts: Sequence[str]) -> SweepSpec:
    """Return the sweep that `[@file.toml ...] [--section.field VALUE ...]` describes.

    Raises ConfigError, in one line, as `load_config` does, and at a setting to be swept that there is not.
    """
    return sweep_of(read_files_and_flags(argv_parts))


def sweep_of(arguments: Arguments) -> SweepSpec:
    """Return the sweep of arguments already read."""
    parts = take_apart(arguments, is_own, name="sweep")
    own = [*parts.own, *map(_from_flag, parts.own_flags)]
    return SweepSpec(sweep=_resolve_own(own, parts.config), common=parts.common)


def _setting(key: str) -> Setting:
    setting = find_setting(key)
    assert setting, "names were looked up before"
    return setting


def _read_none(key: str, value: object) -> object:
    return None if value == "none" and _setting(key).optional else value


def _from_flag(flag: Flag) -> Assignment:
    return Assignment(key=flag.key, value=_flag_value(flag), origin=flag_origin(flag))


def _flag_value(flag: Flag) -> object:
    if flag.key in sweep_settings():
        return parse_value(flag.text, sweep_settings()[flag.key])
    key, part = split_part(flag.key.removeprefix(OVER))
    if part in ("log", "integer"):
        return {"": True, "true": True, "false": False}.get(flag.text.lower(), flag.text)
    if find_setting(key) is None:
        return flag.text
    return parse_value(flag.text, _setting(key)) if part else _list_value(flag.text, key)


def _list_value(text: str, key: str) -> object:
    """Read setting `key`'s values in `A,B,...` or JSON's `[A, B, ...]`; "none" stays, as TOML has no other none."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return [word if word == "none" else parse_value(word, _setting(key)) for word in split_list(text)]


def _resolve_own(own: Sequence[Assignment], config: Config) -> SweepConfig:
    final = {assignment.key: assignment for assignment in own}
    over, origins = _over(own)
    problems = [problem for assignment in own if (problem := explain_unknown(assignment))]
    problems += [f"{origins[key]}: {problem}" for key in over for problem in why_not_swept(key, config)]
    fields = {key.removeprefix("sweep."): final[key].value for key in final if key in sweep_settings()}
    try:
        sweep = SweepConfig.model_validate(fields | {"over": over}, strict=True)
    except ValidationError as error:
        problems += [explain(details, final, origins) for details in error.errors() if _is_meant(details, over)]
    else:
        problems = problems or list(find_problems(sweep, origins))
        if not problems:
            return sweep
    raise first_error(problems)


def _is_meant(error: ErrorDetails, over: Mapping[str, object]) -> bool:
    """Whether the error is about what was written: of a range that is wrong pydantic also says that it is no list."""
    if error["loc"][0] != "over":
        return True
    _, key, *rest = map(str, error["loc"])
    return isinstance(over[key], dict) == (rest[:1] != ["list[any]"])


def _over(own: Sequence[Assignment]) -> tuple[dict[str, object], dict[str, str]]:
    """Collect lists, and ranges as tables, by setting; and where each was given."""
    over: dict[str, object] = {}
    ranges: dict[str, dict[str, object]] = {}
    origins: dict[str, str] = {}
    for assignment in own:
        if not assignment.key.startswith(OVER):
            continue
        key, part = split_part(assignment.key.removeprefix(OVER))
        origins[key] = assignment.origin
        if part:
            whole = {"integer": True} if (setting := find_setting(key)) and setting.kind == "integer" else {}
            over[key] = ranges[key] = {**ranges.get(key, whole), part: assignment.value}
        else:
            over[key] = assignment.value
            ranges.pop(key, None)
    return over, origins
