"""The tiny model of the tests, its rows and its settings, for runs that are disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rayqd.config import Config
from tests import conftest


class _Directory:
    """Where the fixtures make what they make."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mktemp(self, name: str) -> Path:
        (self._path / name).mkdir(exist_ok=True)
        return self._path / name


def make_model(directory: Path) -> Path:
    """The tests' tiny model, outside of a test; as it is where it was made before."""
    if (made := directory / "tiny-model" / "model.safetensors").exists():
        return made.parent
    return cast(Any, conftest.tiny_model).__wrapped__(_Directory(directory))


def make_data(directory: Path) -> Path:
    """The tests' rows."""
    return cast(Any, conftest.tiny_data).__wrapped__(_Directory(directory))


def make_config(model: Path, data: Path, directory: Path, name: str, **sections: Any) -> Config:
    """Two rollout workers, two teachers, and a checkpoint every four steps."""
    base: dict[str, Any] = {
        "name": name,
        "runs_dir": directory / "runs",
        "model": {"name": str(model)},
        "quant": {"group_size": 64, "init": "rtn"},
        "adapter": {"rank": 4},
        "data": {"source": str(data), "max_length": 128, "min_room": 8},
        "eval": {"num_rows": 4},
        "distill": {"lmbda": 0.5, "beta": 0.5},
        "rollout": {"num_workers": 2, "min_new_tokens": 4, "max_new_tokens": 12, "max_concurrent": 8},
        "teacher": {"num_workers": 2},
        "learner": {"batch_size": 4, "lr": 1e-3},
        "checkpoint": {"every": 4, "keep": 3},
    }
    for key, value in sections.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) else value
    return Config.model_validate(base)
