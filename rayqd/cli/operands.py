"""Words of a command that stand without a flag: a run, a file, one of a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayqd.config.hints import nearest_word
from rayqd.config.missing import describe_missing
from rayqd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """An operand as a command declares it."""

    name: str  # as the usage line calls it: "RUN_DIR"
    needs: str = ""  # "a run's directory"; completes "rayqd export needs"
    example: str = ""  # what to write instead of nothing: "runs/quickstart"
    text: str = ""  # its help
    choices: Mapping[str, str] = field(default_factory=dict[str, str])  # every word there is, with its help
    least: int = 1  # how many must be given
    most: int | None = 1  # how many may be; None: any number

    @property
    def usage(self) -> str:
        """How the usage line shows it: `RUN RUN...`, `[DIR]`."""
        if self.least == 0:
            return f"[{self.name}]"
        return " ".join([self.name] * self.least) + ("..." if self.most is None else "")

    def check(self, command: str, words: Sequence[str]) -> None:
        """Raise ConfigError where too few `words` follow `command`, or one that is no choice."""
        needs = f"{command} needs {self.needs}"
        if len(words) < self.least:
            raise ConfigError(f"{needs}: {command} {self.example}")
        wrong = next((word for word in words if self.choices and word not in self.choices), None)
        if wrong is not None:
            near = nearest_word(wrong, self.choices)
            hint = f"did you mean {near}?" if near else f"write {command} {self.example}"
            raise ConfigError(f'{needs}: got "{wrong}"; {hint}')


def existing_run(word: str, parts: Sequence[str]) -> Path:
    """Return the path that `word` is; of a URI, which is a run in its storage, download the `parts` first.

    Raises ConfigError where nothing is there.
    """
    if "://" in word:
        from rayqd.model.source import cache_dir
        from rayqd.runs.storage.fetch import fetch_run

        return fetch_run(word, cache_dir() / "runs", parts)
    path = Path(word)
    if not path.exists():
        raise ConfigError(describe_missing(path))
    return path


def settings_of_run(path: Path) -> list[Path]:
    """Return the config.toml of the run that `path` is, or is a part of; nothing where there is none."""
    folders = [path, *path.absolute().parents[:2]]
    return [folder / "config.toml" for folder in folders if (folder / "config.toml").is_file()][:1]
