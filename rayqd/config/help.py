"""The help of every setting, from the texts in config.sections."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from rayqd.config.settings import Group, Setting, value_text
from rayqd.config.source_list import all_groups

_BRIEF_INDENT = 34  # characters
_FIRST_SENTENCE = re.compile(r"^.+?\.(?=\s|$)", re.DOTALL)


def settings_help(width: int = 100) -> str:
    """Return every setting with its text, what it must be, and its default."""
    return "\n".join(line for group in all_groups() for line in group_help(group, width))


def group_help(group: Group, width: int = 100) -> Iterator[str]:
    """Yield the lines of one section, after an empty one."""
    yield ""
    yield f"{group.name or 'run'}: {group.text}" if group.text else group.name
    for setting in group.settings:
        yield from setting_help(setting, width)


def setting_help(setting: Setting, width: int = 100) -> Iterator[str]:
    """Yield how a setting is written, and its text, what it must be, and its default."""
    yield f"  {_usage(setting)}"
    about = f"{setting.text} [{setting.must_be}; {_default(setting)}]"
    indent = " " * 6
    yield from textwrap.wrap(about, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def brief_help(setting: Setting, width: int = 100) -> Iterator[str]:
    """Yield how a setting is written, and beside it the first sentence of its text, with its default."""
    first = _FIRST_SENTENCE.match(setting.text)
    default = "required" if setting.is_required else value_text(setting.default)
    about = f"{first[0] if first else setting.text} [{default}]"
    usage, indent = f"  {_usage(setting)}", " " * _BRIEF_INDENT
    beside = len(usage) < _BRIEF_INDENT - 1
    if not beside:
        yield usage
    yield from textwrap.wrap(
        about,
        width,
        initial_indent=usage.ljust(_BRIEF_INDENT) if beside else indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )


def _default(setting: Setting) -> str:
    return "required" if setting.is_required else f"default {value_text(setting.default)}"


def _usage(setting: Setting) -> str:
    if setting.kind == "boolean":
        return f"--{setting.key}, --no-{setting.key}"
    if setting.choices:
        others = ["MODULE:NAME"] if setting.takes_import_path else [setting.other_form] if setting.other_form else []
        return f"--{setting.key} {'|'.join([*setting.choices, *others])}"
    words = {"integer": "N", "number": "X", "array": "A,B,...", "object": "A=X,B=Y,..."}
    return f"--{setting.key} {words.get(setting.kind, 'TEXT')}"
