"""Everything that can be found wrong before a single process is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayqd.config import Config
from rayqd.data import ExampleSet, load_run_data
from rayqd.errors import ModelError, StorageError
from rayqd.model.load import context_length, load_tokenizer, skeleton
from rayqd.model.source import local_directory
from rayqd.observe.run_directory import free_bytes
from rayqd.quant import quantizable_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A run that can start."""

    directory: Path
    tokenizer: Any
    context_length: int


def check(config: Config, *, trains: bool = True) -> Checked:
    """Model complete, grid fits every layer, teacher speaks the same tokens, disk has room; raises what is wrong.

    What `trains` writes checkpoints, anything else an export alone.
    """
    directory = local_directory(config.model.name, config.model.revision)
    model = skeleton(directory)
    quantizable_layers(model, config.quant)
    tokenizer = load_tokenizer(directory)
    if config.teacher.name:
        _same_vocabulary(tokenizer, load_tokenizer(local_directory(config.teacher.name)), config)
    _room(config, sum(p.numel() for p in model.parameters()), trains)
    return Checked(directory=directory, tokenizer=tokenizer, context_length=context_length(directory))


def load_data(checked: Checked, config: Config) -> tuple[ExampleSet, ExampleSet]:
    """Training and held-out rows, as tokens."""
    return load_run_data(checked.tokenizer, config, checked.context_length)


def summary(data: ExampleSet) -> str:
    """`200 rows of quickstart (train), 3 too long`."""
    left_out = [f"{data.num_too_long} too long"] if data.num_too_long else []
    if data.num_skipped:
        left_out.append(f"{data.num_skipped} broken (first: {data.reasons[0]})")
    return ", ".join([f"{len(data.examples)} rows of {data.source}", *left_out])


def _same_vocabulary(student: Any, teacher: Any, config: Config) -> None:
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return
    by_id = {i: token for token, i in theirs.items()}
    differing = sorted(i for token, i in ours.items() if by_id.get(i) != token)
    raise ModelError(
        f"teacher {config.teacher.name} and student {config.model.name} have different tokenizers "
        f"({len(ours)} and {len(theirs)} tokens, {len(differing)} ids differ, first {differing[:3]}): "
        "choose a teacher with the student's tokenizer"
    )


def _room(config: Config, num_parameters: int, trains: bool) -> None:
    """An export, and the checkpoints: adapters with two moments in float32, or the weights with theirs."""
    trained = num_parameters if config.adapter.kind == "none" else num_parameters // 10
    checkpoints = (config.checkpoint.keep + 1) * trained * 12 if trains else 0
    needed = num_parameters * 2 + checkpoints
    free = free_bytes(config.run_dir)
    if free < needed:
        what = "checkpoints and export" if trains else "the export"
        raise StorageError(
            f"{config.run_dir} needs about {needed / 2**30:.1f} GiB for {what} and has "
            f"{free / 2**30:.1f} GiB free: make room, or set runs_dir"
        )
