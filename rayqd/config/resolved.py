"""A Config written out, and what separates two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from rayqd.config.data_source import existing_file_of_source
from rayqd.config.job import lasting_directory
from rayqd.config.sections import Config
from rayqd.config.sections.markers import AbsolutePath, HubIdOrPath, Marker, OfOneSource, SameResult
from rayqd.config.sections.sources import SourceConfig
from rayqd.config.settings import Setting, groups, nest_by_section, settings, settings_with, value_text


def to_toml(config: Config) -> str:
    """Return `config` as TOML that `load_config` reads back to the same Config. Unset settings are left out."""
    left_out = settings_with(OfOneSource) if config.data.sources else []
    blocks: list[str] = []
    for group in groups():
        lines = [f"[{group.name}]"] if group.name else []
        for setting in group.settings:
            value = setting_value(config, setting.key)
            if setting.key not in left_out and (value is not None or setting.default is not None):
                lines.append(f"{setting.key.rpartition('.')[2]} = {_lines_of_value(value)}")
        if lines != [f"[{group.name}]"]:
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _lines_of_value(value: object) -> str:
    """Write `value` as TOML does, a list of tables in a line each."""
    tables = (
        [each for each in cast("list[object]", value) if isinstance(each, SourceConfig)]
        if isinstance(value, list)
        else []
    )
    if not tables:
        return value_text(cast("object", value))
    return "\n".join(["[", *(f"  {value_text(each)}," for each in tables), "]"])


def differences(old: Config, new: Config, without: Sequence[type[Marker]] = ()) -> list[str]:
    """Return the settings that differ and change the result, as "learner.lr: 0.001 -> 0.0005".

    Those that carry a marker of a kind in `without` are left out.
    """
    left_out = settings_with(*without)
    return [
        f"{key}: {value_text(before)} -> {value_text(after)}"
        for key in settings()
        if key not in left_out
        and not _is_same_result(key, old, new)
        and (before := setting_value(old, key)) != (after := setting_value(new, key))
    ]


def _is_same_result(key: str, *configs: Config) -> bool:
    """Return whether the setting changes nothing of the result in either of `configs`."""
    marker = settings()[key].marker(SameResult)
    if marker is None or (marker.unless_best_is_task and any(config.best_is_task for config in configs)):
        return False
    return all(
        setting_value(config, other) == settings()[other].default for other in marker.unless for config in configs
    )


def with_absolute_paths(config: Config) -> Config:
    """Return `config` with paths that mean the same in workers and to later readers, whose directories are others."""
    paths = settings_with(AbsolutePath, HubIdOrPath)
    return with_values(config, {key: _make_absolute(settings()[key], setting_value(config, key)) for key in paths})


def _make_absolute(setting: Setting, value: object) -> object:
    if isinstance(value, list):
        return [_with_absolute_path(setting, each) for each in cast("list[object]", value)]
    if isinstance(value, dict):
        return {key: _make_absolute(setting, each) for key, each in cast("dict[str, object]", value).items()}
    if not isinstance(value, str | Path) or not value or "://" in str(value):
        return value
    path = Path(value).expanduser()
    if marker := setting.marker(AbsolutePath):
        return type(value)((lasting_directory() if marker.lasting else Path.cwd()) / path)
    return str(path.absolute()) if _is_local(str(value), setting.marker(HubIdOrPath)) else value


def _with_absolute_path(setting: Setting, source: object) -> object:
    if not isinstance(source, SourceConfig):
        return source
    return source.model_copy(update={"source": _make_absolute(setting, source.source)})


def _is_local(name: str, marker: HubIdOrPath | None) -> bool:
    if marker and marker.only_files:
        return existing_file_of_source(name) is not None
    return Path(name).expanduser().exists()


def setting_value(config: Config, key: str) -> object:
    """Return the value at a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def with_values(config: Config, values: Mapping[str, object]) -> Config:
    """Return `config` with `values`, by dotted key, in place of its own, unchecked."""
    tables = nest_by_section(values)
    top = tables.pop("", {})
    sections = {name: getattr(config, name).model_copy(update=table) for name, table in tables.items()}
    return config.model_copy(update=top | sections)
