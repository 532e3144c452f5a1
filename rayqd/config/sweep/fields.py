"""The settings of [sweep] as a flat table, as `rayqd.config.settings` has those of a run."""

from __future__ import annotations

from functools import cache

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.settings import Group, Setting, group_of
from rayqd.config.source_list import find_setting

OVER = "sweep.over."


@cache
def sweep_group() -> Group:
    """Return the settings of [sweep] but `over`, whose names are those of all other settings."""
    fields = {name: field for name, field in SweepConfig.model_fields.items() if name != "over"}
    return group_of("sweep", SweepConfig, fields)


@cache
def sweep_settings() -> dict[str, Setting]:
    """Return the settings of [sweep] by their dotted keys."""
    return {setting.key: setting for setting in sweep_group().settings}


def is_own(key: str) -> bool:
    """Return whether `key` belongs to [sweep]."""
    return key == "sweep" or key.startswith("sweep.")


def split_part(key: str) -> tuple[str, str]:
    """Split `learner.lr.low` into the setting and the part `low` of its range; a part is "" where there is none."""
    setting, _, part = key.rpartition(".")
    return (setting, part) if setting and part in Span.model_fields and not find_setting(key) else (key, "")
