"""A sweep written out, what separates two of them, and the help of [sweep]."""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.config.help import group_help
from rayqd.config.sections.markers import SameResult
from rayqd.config.sections.sweep import Span, SweepConfig
from rayqd.config.settings import value_text
from rayqd.config.sweep.fields import OVER, sweep_group, sweep_settings


def sweep_toml(sweep: SweepConfig) -> str:
    """Return `sweep` as TOML that `load_sweep` reads back. Unset settings are left out."""
    names = [key.removeprefix("sweep.") for key in sweep_settings()]
    lines = [f"{name} = {value_text(value)}" for name in names if (value := getattr(sweep, name)) is not None]
    over = [f"{key} = {dimension_text(dimension)}" for key, dimension in sweep.over.items()]
    return "\n".join(["[sweep]", *lines, "", "[sweep.over]", *over]) + "\n"


def dimension_text(dimension: Sequence[object] | Span) -> str:
    """Return a list, or a range, as TOML writes it."""
    if not isinstance(dimension, Span):
        return value_text(list(dimension))
    switches = [f"{name} = true" for name in ("log", "integer") if getattr(dimension, name)]
    return f"{{{', '.join([f'low = {value_text(dimension.low)}', f'high = {value_text(dimension.high)}', *switches])}}}"


def sweep_differences(old: SweepConfig, new: SweepConfig) -> list[str]:
    """Return what differs and makes other trials, as "sweep.num_trials: 8 -> 16"."""
    before, after = _texts(old), _texts(new)
    return [
        f"{key}: {before.get(key, 'not there')} -> {after.get(key, 'not there')}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def sweep_help() -> str:
    """Return every setting of [sweep], as `settings_help` has those of a run."""
    return "\n".join(
        [
            *group_help(sweep_group()),
            "  --sweep.over.SECTION.FIELD A,B,...",
            "  --sweep.over.SECTION.FIELD.low X  .high X  .log  .integer",
            "      A setting that the trials differ in: a list of values, or a range.",
        ]
    )


def _texts(sweep: SweepConfig) -> dict[str, str]:
    texts = {
        key: value_text(getattr(sweep, key.removeprefix("sweep.")))
        for key, setting in sweep_settings().items()
        if not setting.marker(SameResult)
    }
    return texts | {f"{OVER}{key}": dimension_text(dimension) for key, dimension in sweep.over.items()}
