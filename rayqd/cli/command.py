"""What a command is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rayqd.config.arguments import Arguments
from rayqd.config.files import missing
from rayqd.config.load import unexpected
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    name: str
    text: str  # one line
    run: Callable[[Sequence[str]], int]  # takes the words after the command, returns the exit code
    operand: str = ""  # what stands before the settings
    details: str = ""
    takes_settings: bool = True


def operand(arguments: Arguments, command: str, what: str, parts: Sequence[str] = ()) -> Path:
    """The one path among the words; ConfigError if it is missing, more than one, or not there.

    Of a URI, which is a run in its storage, the `parts` are downloaded first.
    """
    first, *others = [*arguments.words, "", ""]
    if not first:
        raise ConfigError(f"rayqd {command} needs {what}: rayqd {command} runs/quickstart")
    if others[0]:
        raise ConfigError(unexpected(others[0]))
    if "://" in first:
        from rayqd.model.source import cache_dir
        from rayqd.runs.storage.fetch import fetch_run

        return fetch_run(first, cache_dir() / "runs", parts)
    path = Path(first)
    if not path.exists():
        raise ConfigError(missing(path))
    return path


def words_alone(words: Sequence[str], command: str, at_most: int | None = None) -> list[str]:
    """`words` of a command without settings; ConfigError at a file, a flag, or more words than `at_most`."""
    for word in words:
        if word.startswith(("-", "@")):
            raise ConfigError(f'unexpected argument "{word}": rayqd {command} takes no settings')
    if at_most is not None and len(words) > at_most:
        raise ConfigError(f'unexpected argument "{words[at_most]}": rayqd {command} takes {at_most or "none"}')
    return list(words)


def settings_of_run(path: Path) -> list[Path]:
    """The config.toml of the run that `path` is, or is a part of."""
    folders = [path, *path.absolute().parents[:2]]
    return [folder / "config.toml" for folder in folders if (folder / "config.toml").is_file()][:1]
