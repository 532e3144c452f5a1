"""Every setting there is. The text under a field is its help; a value that cannot work cannot be written.

Defaults are those of the study this tool grew out of (Qwen3-4B, INT4, rank 32, on-policy reverse KL).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayqd.config.sections.base import Section
from rayqd.config.sections.markers import (
    AbsolutePath,
    ChangesCompletions,
    ChangesEvaluationOnly,
    ChangesHeldOut,
    Housekeeping,
    IgnoredBy,
    MachineSpecific,
    NotSwept,
    RunSpecific,
    SameResult,
)
from rayqd.config.sections.models import ModelConfig, TeacherConfig, TeacherModel
from rayqd.config.sections.operation import CheckpointConfig, EvalConfig, RayConfig
from rayqd.config.sections.quant import METHODS, AdapterConfig, QuantConfig
from rayqd.config.sections.rollout import RolloutConfig
from rayqd.config.sections.training import DataConfig, DistillConfig, LearnerConfig
from rayqd.errors import ConfigError

__all__ = [
    "METHODS",
    "AdapterConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "EvalConfig",
    "LearnerConfig",
    "ModelConfig",
    "QuantConfig",
    "RayConfig",
    "RolloutConfig",
    "Section",
    "TeacherConfig",
]

_URI_OR_PATH = re.compile(r"[a-z][a-z0-9+.-]*://\S|[/~.]|[^:]*/")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)?$"

OWN_METRICS = ("kl_to_teacher", "top1_agreement", "perplexity", "text_perplexity")  # of checkpoint.best

# A step of a 4B model is 0.2 s shorter with compiled layers, and they take half a minute (docs/performance.md).
_STEPS_WORTH_COMPILING = 200


class Config(Section):
    """A run: everything that decides its result, and where it runs."""

    name: Annotated[str, RunSpecific(), NotSwept("each trial has a name of its own")] = Field(
        default="distill", pattern=_NAME
    )
    """Name of the run, and of its directory; that of a sweep's trial is the sweep's name, a slash, and its own."""
    runs_dir: Annotated[
        Path,
        AbsolutePath(lasting=True),
        SameResult(),
        RunSpecific(),
        MachineSpecific(),
        NotSwept("all trials lie in the sweep's directory"),
    ] = Path("runs")
    """Directory of the runs' directories."""
    storage: Annotated[str | None, AbsolutePath(lasting=True), SameResult()] = None
    """Where a run is kept beside its directory, as storage/name: s3://bucket/runs, gs://..., file:///..., or a path.
    From there it resumes on any machine, and no node needs a disk that others share."""
    track: Annotated[
        list[Literal["tensorboard", "wandb", "mlflow", "trackio"]],
        SameResult(),
        MachineSpecific(),
        Housekeeping(),
        NotSwept("trials are not tracked; the sweep's own page has all of them"),
        IgnoredBy("quantize"),
    ] = Field(default=[])
    """`rayqd distill`: trackers that get every metric, all settings, the result and the report, each by its own library
    (pip install "rayqd[wandb]"): tensorboard, wandb, mlflow, trackio. One that fails never ends the run."""
    track_project: Annotated[
        str,
        SameResult(),
        MachineSpecific(),
        Housekeeping(),
        NotSwept("trials are not tracked; the sweep's own page has all of them"),
        IgnoredBy("quantize"),
    ] = Field(default="rayqd", min_length=1)
    """Project (mlflow: experiment) of the run in its trackers."""
    seed: Annotated[int, ChangesHeldOut(), ChangesCompletions()] = Field(default=42, ge=0)
    """Decides the order of the data, every completion's sampling, and the adapters' first values."""
    model: ModelConfig = ModelConfig()
    teacher: TeacherConfig = TeacherConfig()
    quant: QuantConfig = QuantConfig()
    adapter: Annotated[AdapterConfig, IgnoredBy("quantize")] = AdapterConfig()
    data: DataConfig = DataConfig()
    distill: Annotated[DistillConfig, IgnoredBy("quantize")] = DistillConfig()
    rollout: Annotated[RolloutConfig, IgnoredBy("quantize")] = RolloutConfig()
    learner: Annotated[LearnerConfig, IgnoredBy("quantize")] = LearnerConfig()
    eval: Annotated[EvalConfig, ChangesEvaluationOnly(), NotSwept("all trials must be measured on the same rows")] = (
        EvalConfig()
    )
    checkpoint: CheckpointConfig = CheckpointConfig()
    ray: Annotated[RayConfig, SameResult(), MachineSpecific(), NotSwept("all trials run on the sweep's cluster")] = (
        RayConfig()
    )

    @model_validator(mode="after")
    def _payload_allows(self) -> Config:
        distill, rollout = self.distill, self.rollout
        if self.teacher.payload != "sampled":
            return self
        if distill.lmbda != 1 or (distill.loss == "jsd" and distill.beta != 1) or rollout.max_staleness:
            raise ValueError(
                f"payload=sampled estimates the reverse KL on tokens that the student has just sampled: it needs "
                f"distill.lmbda=1 (now {distill.lmbda:g}), distill.beta=1 (now {distill.beta:g}) and "
                f"rollout.max_staleness=0 (now {rollout.max_staleness})"
            )
        if rollout.temperature != distill.temperature:
            raise ValueError(
                f"payload=sampled needs rollout.temperature ({rollout.temperature:g}) and distill.temperature "
                f"({distill.temperature:g}) to be the same"
            )
        if rollout.is_truncated:
            raise ValueError(
                f"payload=sampled estimates the reverse KL on samples of the whole distribution: it needs "
                f"rollout.top_p=1 (now {rollout.top_p}), rollout.top_k=0 (now {rollout.top_k}), "
                f"rollout.min_p=0 (now {rollout.min_p}) and rollout.repetition_penalty=1 "
                f"(now {rollout.repetition_penalty})"
            )
        return self

    @model_validator(mode="after")
    def _route_allows(self) -> Config:
        if self.teacher.route and self.distill.seq_kd:
            raise ValueError(
                "distill.seq_kd has one teacher write the completions, and teacher.route names several: leave one of "
                "the two out, or write them with `rayqd generate`, a data set of each teacher's rows at a time"
            )
        return self

    @model_validator(mode="after")
    def _storage_is_uri_or_path(self) -> Config:
        storage = self.storage
        if storage is not None and not _URI_OR_PATH.match(storage):
            raise ValueError(f"storage={storage} is no place: write s3://bucket/folder, gs://bucket/folder or /a/path")
        if storage is not None and _PASSWORD.search(storage):
            raise ValueError("storage has a password in it, which config.toml would show: leave it to the environment")
        return self

    @model_validator(mode="after")
    def _evaluations_decide(self) -> Config:
        asks = "checkpoint.best" if self.checkpoint.best else "eval.patience" if self.eval.patience else ""
        if asks and not self.eval.every:
            raise ValueError(f"eval.every is 0, and {asks} compares evaluations while training: set the steps between")
        if self.checkpoint.best == "text_perplexity" and not self.eval.text:
            raise ValueError("the perplexity is measured of eval.text, which is none: set it, or another metric")
        if self.best_is_task:
            self._check_best_task(str(self.checkpoint.best))
        return self

    def _check_best_task(self, best: str) -> None:
        task = best.partition("/")[0]
        if task not in self.eval.tasks and "study" not in self.eval.tasks:
            raise ValueError(
                f"checkpoint.best={best} is neither {', '.join(OWN_METRICS)} nor one of eval.tasks "
                f"({', '.join(self.eval.tasks) or 'which are none'})"
            )
        if not self.eval.steps_between_tasks:
            raise ValueError(f"checkpoint.best={best} is a benchmark, and eval.tasks_every=0 runs none while training")

    @model_validator(mode="after")
    def _benchmarks_have_an_engine(self) -> Config:
        if self.eval.where == "rollout" and self.eval.steps_between_tasks and not self.is_on_policy:
            raise ValueError(
                "eval.where=rollout asks a rollout worker, and distill.lmbda=0 has none: set it to learner"
            )
        return self

    @property
    def tracks_evaluations(self) -> bool:
        """Whether the evaluations during training decide what is exported, or when training ends."""
        return self.checkpoint.best is not None or self.eval.patience > 0

    @property
    def best_is_task(self) -> bool:
        """Whether a benchmark decides which weights are exported."""
        return self.checkpoint.best is not None and self.checkpoint.best not in OWN_METRICS

    def runs_tasks(self, step: int) -> bool:
        """Return whether the benchmarks are run with the weights after `step` steps, while training."""
        between = self.eval.steps_between_tasks
        return between > 0 and (step % between == 0 or step == self.learner.steps)

    @property
    def run_dir(self) -> Path:
        """The directory of this run, absolute."""
        return (self.runs_dir / self.name).absolute()

    @property
    def teachers(self) -> tuple[TeacherModel, ...]:
        """The teachers, each once: the model itself unless others are named; those of `teacher.route` by name."""
        own = TeacherModel(name=self.model.name, revision=self.model.revision, is_student=True)
        if self.teacher.route:
            names = sorted(set(self.teacher.route.values()))
            others = (TeacherModel(name=name, revision=None, is_student=False) for name in names)
            return tuple(own if other.name == own.name else other for other in others)
        name = self.teacher.name
        return (own,) if name is None else (TeacherModel(name=name, revision=None, is_student=False),)

    @property
    def only_teacher(self) -> TeacherModel:
        """The teacher of a run that has one; raises ConfigError where `teacher.route` names several."""
        first, *others = self.teachers
        if others:
            raise ConfigError(
                "teacher.route chooses among several teachers, and this takes one: leave teacher.route and "
                "teacher.column out (--teacher.route {} --teacher.column none), and set teacher.name"
            )
        return first

    @property
    def num_teacher_workers(self) -> int:
        """How many teacher actors there are, of all teachers."""
        return len(self.teachers) * self.teacher.num_workers

    @property
    def is_on_policy(self) -> bool:
        """Whether the student samples any of what it is trained on, so that there are rollout workers."""
        return self.distill.lmbda > 0

    @property
    def first_on_policy_step(self) -> int:
        """How many steps come before those that `distill.lmbda` holds for."""
        return round(self.distill.on_policy_after * self.learner.steps)

    @property
    def trains_on_answers(self) -> bool:
        """Whether any of the data's own answers is trained on, so that its rows must have them."""
        return (self.distill.lmbda < 1 or self.distill.on_policy_after > 0) and not self.distill.seq_kd

    @property
    def compiles_layers(self) -> bool:
        """Whether a GPU's decoder layers are compiled: unless the model says so, where the steps earn it back."""
        return self.model.compile if self.model.compile != "auto" else self.learner.steps >= _STEPS_WORTH_COMPILING

    @property
    def payload_cache_dir(self) -> Path:
        """Where teachers' payloads are kept for later runs, absolute."""
        return (self.teacher.cache_dir or self.runs_dir / ".teacher-scores").absolute()
