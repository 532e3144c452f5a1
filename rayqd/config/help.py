"""The help of every setting, from the texts in config.sections."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rayqd.config.settings import Group, Setting, groups, value_text


def settings_help(width: int = 100) -> str:
    """Return every setting with its text, what it must be, and its default."""
    return "\n".join(line for group in groups() for line in group_help(group, width))


def group_help(group: Group, width: int = 100) -> Iterator[str]:
    """Yield the lines of one section, after an empty one."""
    yield ""
    yield f"{group.name or 'run'}: {group.text}" if group.text else group.name
    for setting in group.settings:
        yield f"  {_usage(setting)}"
        about = f"{setting.text} [{setting.must_be}; default {value_text(setting.default)}]"
        indent = " " * 6
        yield from textwrap.wrap(about, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _usage(setting: Setting) -> str:
    if setting.kind == "boolean":
        return f"--{setting.key}, --no-{setting.key}"
    if setting.choices:
        others = ["MODULE:NAME"] if setting.takes_import_path else []
        return f"--{setting.key} {'|'.join([*setting.choices, *others])}"
    words = {"integer": "N", "number": "X", "array": "A,B,..."}
    return f"--{setting.key} {words.get(setting.kind, 'TEXT')}"
