"""What may stand after the flags and commands, read from their declarations: one table for all shells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rayqd.cli.command import Command
from rayqd.config.comparison.fields import comparison_settings
from rayqd.config.sections.markers import HubIdOrPath
from rayqd.config.settings import Setting, settings
from rayqd.config.sweep.fields import sweep_settings

FILES, DIRECTORIES = "FILES", "DIRECTORIES"
_MAX_TEXT = 72  # characters of a description


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What may stand in one place: words that can be listed, or paths, or anything (neither)."""

    words: tuple[str, ...] = ()
    paths: str = ""  # FILES, DIRECTORIES, or none


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag with its dashes; `value` is None where it takes none."""

    name: str
    text: str
    value: Value | None = None


def setting_flags() -> Iterator[Flag]:
    """Yield a flag for each setting, and the one that turns it off where it is a switch."""
    for setting in settings().values():
        flag = _setting_flag(setting)
        yield flag
        if setting.kind == "boolean":
            yield Flag(name=f"--no-{setting.key}", text=f"off: {flag.text}")


def command_flags(command: Command) -> Iterator[Flag]:
    """Yield the flags that `command` alone has."""
    for option in command.options:
        value = Value(paths=_path_kind(option.value)) if option.value else None
        yield Flag(name=f"--{option.name}", text=_first_sentence(option.text), value=value)
    own = {"sweep": sweep_settings, "compare": comparison_settings}.get(command.name)
    if own:  # it has a section of settings of its own
        yield from map(_setting_flag, own().values())
    yield Flag(name="--help", text="what the command does")


def operand_value(command: Command) -> Value:
    """Return what the first word without a flag may be."""
    if not command.operands:
        return Value()
    operand = command.operands[0]
    return Value(words=tuple(operand.choices)) if operand.choices else Value(paths=_path_kind(operand.name))


def _path_kind(name: str) -> str:
    """Return the kind of path that a name in the help, RUN_DIR or FILE, stands for."""
    return DIRECTORIES if "DIR" in name or "RUN" in name else FILES if "FILE" in name else ""


def _setting_flag(setting: Setting) -> Flag:
    return Flag(name=f"--{setting.key}", text=_first_sentence(setting.text), value=_setting_value(setting))


def _setting_value(setting: Setting) -> Value:
    if setting.choices or setting.kind == "boolean":
        return Value(words=setting.choices or ("true", "false"))
    # A setting that is text may be the name of a model or of a data set, which may be a path.
    if setting.marker(HubIdOrPath):
        return Value(paths=FILES)
    return Value(paths={"path": DIRECTORIES, "string": FILES}.get(setting.kind, ""))


def _first_sentence(text: str) -> str:
    sentence = " ".join(text.split()).split(". ")[0].split("; ")[0].rstrip(".")
    return sentence if len(sentence) <= _MAX_TEXT else f"{sentence[: _MAX_TEXT - 1]}…"
