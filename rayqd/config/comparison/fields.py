"""The settings of [compare] as a flat table, as `rayqd.config.settings` has those of a run."""

from __future__ import annotations

from functools import cache

from rayqd.config.sections.compare import CompareConfig
from rayqd.config.settings import Group, Setting, group_of

OWN = "compare."
ARMS = "compare.arms."


@cache
def comparison_group() -> Group:
    """Return the settings of [compare] but its arms, which have names of their own."""
    return group_of("compare", CompareConfig, CompareConfig.model_fields)


@cache
def comparison_settings() -> dict[str, Setting]:
    """Return the settings of [compare] by their dotted keys."""
    return {setting.key: setting for setting in comparison_group().settings}


def is_own(key: str) -> bool:
    """Return whether `key` belongs to [compare]."""
    return f"{key}.".startswith(OWN)
