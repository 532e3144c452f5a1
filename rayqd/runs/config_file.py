"""`config.toml` of a run: its settings as resolved, the command that wrote it, and what shows that nobody changed it.

# rayqd distill

name = "mine"
...
# written by rayqd 0.1.0, directories of form 1, checksum 0f3c...
"""

from __future__ import annotations

import re
from pathlib import Path

from rayqd.checksums import digest
from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.config.resolved import to_toml
from rayqd.errors import RunError
from rayqd.files import write_text
from rayqd.versions import installed_version

FORM = 1  # of a run's directory; the next one is what this version would misread

_HEAD = "# rayqd "  # the command's name follows
_SEAL = "# written by rayqd"
_PARTS = re.compile(r"# written by rayqd (\S+), directories of form (\d+), checksum ([0-9a-f]{32})")


def write_config(file: Path, command: str, config: Config) -> None:
    """Write the settings of a run of `command`. Raises StorageError."""
    text = f"{_HEAD}{command}\n\n{to_toml(config)}"
    seal = f"{_SEAL} {_version()}, directories of form {FORM}, checksum {digest(text.encode())}\n"
    write_text(file, text + seal)


def load_run_config(file: Path) -> Config:
    """Return the settings that a run was started with. Raises RunError where `check_config` does, or ConfigError."""
    check_config(file)
    return load_config([f"@{file}"])


def check_config(file: Path) -> None:
    """Raise RunError where the file is not what was written, or was written by a version with another directory.

    Files without the last line are of an earlier version, or somebody's own.
    """
    text = file.read_bytes().decode(errors="replace")
    before, found, seal = text.rpartition(_SEAL)
    if not found:
        return
    parts = _PARTS.fullmatch((found + seal).rstrip("\n"))
    if parts and int(parts[2]) > FORM:
        raise RunError(
            f"{file.parent} was written by rayqd {parts[1]}, whose run directories have form {parts[2]}, and this is "
            f"rayqd {_version()}, which knows form {FORM}: use that version, or give this run another name"
        )
    if not parts or digest(before.encode(errors="replace")) != parts[3]:
        raise RunError(
            f"{file} is not what rayqd wrote there: put it back, or remove its last line if the change was meant"
        )


def command_of(file: Path) -> str:
    """Return the command whose run has this config.toml: distill, quantize or sweep."""
    first = file.read_text(errors="replace").partition("\n")[0]
    return first.removeprefix(_HEAD) if first.startswith(_HEAD) else "distill"


def _version() -> str:
    """Return this package's version, in one word; a checkout that is on PYTHONPATH alone has none."""
    return installed_version("rayqd") or "uninstalled"
