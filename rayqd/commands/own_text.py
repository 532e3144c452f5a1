"""How students go on from the prompts of held-out rows, and what the numbers along that text rest on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rayqd.checksums import digest, digest_file
from rayqd.config import Config
from rayqd.data.chat_settings import chat_settings
from rayqd.data.stops import end_token_ids
from rayqd.evals.writing import Writing
from rayqd.model.load import common_vocab_size, context_length
from rayqd.model.source import teacher_directory
from rayqd.runs.continuations import Basis
from rayqd.types import Example, Rollout
from rayqd.versions import installed_version

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def choose_writing(config: Config, tokenizer: Any, source: Path) -> Writing:
    """Return how the students of `config` write; `source` is the directory of the 16-bit model.

    What is written is within what student and teacher can read. Raises ConfigError where there are several teachers.
    """
    teacher = teacher_directory(config)
    return Writing(
        ends=end_token_ids(tokenizer, source, chat_settings(config.data)),
        max_new_tokens=config.rollout.max_new_tokens,
        seed=config.seed,
        max_tokens=config.learner.microbatch_tokens,
        context_length=min(context_length(source), context_length(teacher)),
        num_ids=common_vocab_size(source, teacher),
    )


def digest_weights(directory: Path) -> str:
    """Return a digest of a model's weights, whatever it is of, and of its configuration."""
    files = sorted({file for pattern in _WEIGHTS for file in directory.glob(pattern)})
    return digest("\n".join(f"{file.name} {digest_file(file)}" for file in files).encode())


def find_basis(
    config: Config,
    writing: Writing,
    rows: Sequence[Example | Rollout],
    model: Path,
    digest_of: Callable[[Path], str] = digest_weights,
) -> Basis:
    """Return what numbers of the model in a directory rest on, along what it writes after the prompts of `rows`."""
    prompts = [digest(row.prompt_ids.astype("<i4").tobytes()) for row in rows]
    return Basis(
        prompts=digest("\n".join(prompts).encode()),
        model=digest_of(model),
        teacher=digest_of(teacher_directory(config)),
        dtype=config.model.dtype,
        ends=tuple(writing.ends),
        max_new_tokens=writing.max_new_tokens,
        seed=writing.seed,
        rayqd=installed_version("rayqd") or "uninstalled",
    )
