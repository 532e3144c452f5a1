"""What the scripts share that quantize with another project's package: options, calibration rows, and what they write.

They write a directory that transformers loads, with plain 16- or 32-bit weights that lie on the 4-bit grid, so that
tune/measure_elsewhere.py can hold every tool to the same evaluation.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shlex
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recipe_rows import calibration_rows, load_rows
from torch import Tensor

from rayqd.config import Config
from rayqd.config.load import load_config
from rayqd.driver.dtype import with_concrete_dtype
from rayqd.errors import ConfigError, RayqdError
from rayqd.model.load import torch_dtype
from rayqd.model.source import local_directory
from rayqd.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_LEVELS = 16  # of a 4-bit grid
SUMMARY = "elsewhere.json"  # in the directory that is written: the tool, its version and settings, seconds
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model")


@dataclass(slots=True, kw_only=True)
class Job:
    """One quantization: of what, on which rows, and where to."""

    config: Config
    directory: Path  # of the dense model
    rows: list[IntArray]  # calibration
    out: Path
    began: float = field(default_factory=time.perf_counter)

    def load(self) -> PreTrainedModel:
        """Load the dense model on the CPU, in the study's dtype; tools move it themselves."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch_dtype(self.config.model.dtype)).eval()

    def save(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any], package: str) -> None:
        """Write the dense model with `weights` in place of its own.

        Raises ConfigError if they are not those of the quantized layers, or do not lie on a 4-bit grid.
        """
        seconds = time.perf_counter() - self.began
        model = self.load()
        state = model.state_dict()
        check_weights(weights, state, self.config.quant.group_size)
        with torch.no_grad():
            for name, weight in weights.items():
                state[name].copy_(weight)
        model.save_pretrained(self.out)
        for pattern in _COPIED:
            for file in self.directory.glob(pattern):
                if not (self.out / file.name).exists():
                    shutil.copy(file, self.out)
        summary = {"package": package, "version": version(package), "torch": torch.__version__, **settings}
        summary["seconds"] = round(seconds, 1)
        (self.out / SUMMARY).write_text(json.dumps(summary) + "\n")
        print(f"{self.out}: {json.dumps(summary)}", flush=True)


def check_weights(weights: Mapping[str, Tensor], state: Mapping[str, Tensor], group_size: int) -> None:
    """Refuse weights that are not those of all linear layers of the decoder, or not 4-bit in groups of `group_size`.

    Raises ConfigError with the first layer that differs.
    """
    expected = {name for name, tensor in state.items() if ".layers." in name and tensor.ndim == 2}
    if differing := sorted(expected ^ weights.keys()):
        raise ConfigError(f"{differing[0]}: quantized by one side only; {len(differing)} layers differ like this")
    for name, weight in weights.items():
        if (levels := most_levels(weight, group_size)) > NUM_LEVELS:
            raise ConfigError(f"{name}: a group of {group_size} has {levels} values; 4 bits have {NUM_LEVELS}")


def most_levels(weight: Tensor, group_size: int) -> int:
    """Return how many different values the group with the most of them has, of a weight [out, in]."""
    ordered = weight.detach().float().reshape(-1, group_size).sort(dim=1).values
    return int((ordered.diff(dim=1) != 0).sum(1).max()) + 1


@contextmanager
def errors_in_a_line() -> Iterator[None]:
    """End the process with one line on what a user can put right."""
    try:
        yield
    except RayqdError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def import_tool(module: str, package: str) -> Any:
    """Import another project's package.

    Raises ConfigError if it is not there, or what it needs is not.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        advice = f'install {package} where this script finds it (docs/quantization.md, "The same rows, other tools")'
        raise ConfigError(f"{module} cannot be imported: {error}; {advice}") from error


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every tool has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("arms", type=Path, help="tune/recipes.toml, whose base names model, grid and calibration tokens")
    made.add_argument("data", type=Path, help="what tune/recipe_data.py wrote")
    made.add_argument("out", type=Path, help="directory that is written; it must not exist")
    made.add_argument("--flags", default="", help="settings of rayqd that replace those of the base")
    return made


def read_job(options: argparse.Namespace) -> Job:
    """Read the rows that the study's own GPTQ is calibrated on.

    Raises ConfigError if OUT is there already, or the base's grid is not one that the tools have; DataError of rows.
    """
    if options.out.exists():
        raise ConfigError(f"{options.out} is there already; name another directory, or remove it")
    config = with_concrete_dtype(load_config(shlex.split(f"{read_base(options.arms)} {options.flags}")))
    if config.quant.format != "int4":
        raise ConfigError(f"quant.format={config.quant.format}: the other tools are told int4; leave it at int4")
    directory = local_directory(config.model.name)
    rows = load_rows(config, options.data / "train.jsonl", directory)
    return Job(config=config, directory=directory, rows=calibration_rows(config, rows), out=options.out)


def read_base(arms: Path) -> str:
    """Return the flags that all arms of a study share.

    Raises ConfigError if the file is not a study's.
    """
    try:
        base = tomllib.loads(arms.read_text()).get("base")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{arms}: {error}; give a file like tune/recipes.toml") from error
    if not isinstance(base, str):
        raise ConfigError(f"{arms} has no `base`; give a file like tune/recipes.toml")
    return base
