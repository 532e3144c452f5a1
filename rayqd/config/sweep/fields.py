"""The settings of [sweep] as a flat table, as `rayqd.config.settings` has those of a run."""

from __future__ import annotations

from functools import cache

from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.settings import Group, Setting, group_of, settings

OVER = "sweep.over."
PARTS_OF_A_SPAN = tuple(Span.model_fields)


@cache
def sweep_group() -> Group:
    """`over` excepted, whose names are those of all other settings."""
    return group_of(
        "sweep", SweepConfig, {name: field for name, field in SweepConfig.model_fields.items() if name != "over"}
    )


@cache
def sweep_settings() -> dict[str, Setting]:
    """By dotted key."""
    return {setting.key: setting for setting in sweep_group().settings}


def is_own(key: str) -> bool:
    """Whether `key` belongs to [sweep]."""
    return key == "sweep" or key.startswith("sweep.")


def split(key: str) -> tuple[str, str]:
    """`learner.lr.low` is the part `low` of the range of `learner.lr`; a part is "" where there is none."""
    setting, _, part = key.rpartition(".")
    return (setting, part) if setting and part in PARTS_OF_A_SPAN and key not in settings() else (key, "")
