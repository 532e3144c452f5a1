"""Where training starts from is the same for trials that differ only in how they train, and need be made only once."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from rayqd.config import Config, load_config
from rayqd.events import Arm, EvalEvent, Fidelity
from rayqd.files import replace_directory
from rayqd.runs.directory import RunDirectory
from rayqd.sweep.shared import Key, data_key


def inherit_start(config: Config, run_dir: RunDirectory) -> None:
    """Take the `start/` of another trial of the sweep, with what was measured of it, if one fits and none is there."""
    own = run_dir.path / "start"
    if own.exists():
        return
    for other in sorted(run_dir.path.parent.glob("*/start")):
        if _key(load_config([f"@{other.parent / 'config.toml'}"])) == _key(config):
            _copy(other, own)
            _tell_of(own, run_dir)
            return


def _key(config: Config) -> Key:
    """Equal for two trials just when they start from the same weights and are measured against the same teacher."""
    return (*data_key(config), config.model.dtype, config.quant.model_dump_json(), config.teacher_name)


def _copy(source: Path, destination: Path) -> None:
    """Linked where the disk can: nobody writes to these files, and the weights may be large."""
    with replace_directory(destination) as partial:
        shutil.copytree(source, partial, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, destination: str) -> None:
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


def _tell_of(start: Path, run_dir: RunDirectory) -> None:
    """As the learner does where it measures them itself."""
    arms: dict[str, dict[str, Any]] = json.loads((start / "arms.json").read_text())
    for name, fidelity in arms.items():
        event = EvalEvent(step=0, arm=Arm.from_name(name), fidelity=Fidelity(**fidelity))
        run_dir.append(event, time.time())
