"""Evaluation, checkpoints, and the Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayqd.config.sections.base import Section, TaskMetric
from rayqd.config.sections.markers import (
    AbsolutePath,
    ChangesBenchmarks,
    Housekeeping,
    HubIdOrPath,
    IgnoredBy,
    SameResult,
)
from rayqd.config.sections.sources import check_columns


class EvalConfig(Section):
    """The held-out rows, the benchmarks, and when a run is measured on them."""

    source: Annotated[str | None, HubIdOrPath(only_files=True)] = None
    """As data.source: a file, several, a URL, a directory, a data set id, or "quickstart"; none keeps the first
    `num_rows` rows of the shuffled data from training."""
    split: str = "test"
    """Split of a data set, or an expression, as data.split."""
    subset: str | None = None
    """Subset of a hub data set; none: data.subset where the data set is data.source's, else no subset."""
    columns: dict[str, str] = Field(default={})
    """As data.columns; none: those of the data where the data set is one that is trained on, or else data.columns."""
    num_rows: int = Field(default=128, ge=1)
    """Held-out rows."""
    every: Annotated[int, SameResult(unless=("checkpoint.best", "eval.patience"))] = Field(default=0, ge=0)
    """Steps between evaluations; 0 evaluates before the first and after the last step alone. It stays as it was where
    checkpoint.best or eval.patience decides by them."""
    patience: Annotated[int, IgnoredBy("quantize")] = Field(default=0, ge=0)
    """Evaluations in a row, every `every` steps, without a better value of checkpoint.best (none: of the KL), after
    which training ends before its last step; 0 never. A learning rate that falls to zero over learner.steps is then
    still high: learner.schedule constant goes with it."""
    min_delta: Annotated[float, IgnoredBy("quantize")] = Field(default=0.0, ge=0)
    """How much better a value must be than the best one to count for `patience`."""
    text: Annotated[str | None, HubIdOrPath(only_files=True)] = None
    """A running text whose perplexity is measured wherever the held-out rows are: a text file, taken as it stands, or a
    data set as data.source, whose rows' `text` is joined by empty lines. The hub's WikiText-2 is Salesforce/wikitext
    with text_subset wikitext-2-raw-v1."""
    text_split: str = "test"
    """Split of a data set."""
    text_subset: str | None = None
    """Subset of a hub data set."""
    text_tokens: int | None = Field(default=None, ge=2)
    """The first so many tokens of it; none takes all."""
    detokenize: Literal["none", "wikitext"] = "none"
    """wikitext: undo the spaces and the @-@ of tokenized WikiText, as Megatron-LM does; perplexities with and without
    do not compare."""
    window: int | None = Field(default=None, ge=2)
    """Tokens that the model sees of it at a time; none: as many as it takes, at most 2048."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens by which the window moves on; each token is scored once, with at least window - stride before it. none:
    the window, so that windows are disjoint, as those of llama.cpp and of GPTQ's code."""
    tasks: Annotated[list[str], SameResult(unless_best_is_task=True), ChangesBenchmarks()] = Field(default=[])
    """Benchmarks of lm-evaluation-harness, as gsm8k,arc_easy, of `rayqd eval` and while training (`tasks_every`);
    quickstart_words needs no network; study stands for hellaswag, arc_easy, arc_challenge, winogrande and mmlu."""
    tasks_every: Annotated[int | None, SameResult(unless_best_is_task=True)] = Field(default=None, ge=0)
    """Steps between two runs of `tasks` while training, a multiple of `every`, and one more after the last step; none:
    with every evaluation; 0: never, they are left to `rayqd eval`."""
    where: Annotated[Literal["learner", "rollout"], SameResult(unless_best_is_task=True)] = "learner"
    """Who answers `tasks` while training, with the weights as they are exported. learner: the student itself, through
    transformers; rollout: a rollout worker's vLLM, which rounds sums in another order. The learner waits in either
    case."""
    backend: Annotated[Literal["transformers", "vllm"], SameResult(), ChangesBenchmarks()] = "transformers"
    """`rayqd eval`: what runs the models on `tasks`. vllm rounds sums in another order."""
    local_data: Annotated[dict[str, str], SameResult(unless_best_is_task=True), ChangesBenchmarks()] = Field(default={})
    """Benchmarks: files of yours with a task's documents, in place of the hub's data set, as
    arc_easy=arc_test.jsonl,winogrande=wino.jsonl: JSON Lines with the fields of that data set."""
    tasks_dir: Annotated[Path | None, SameResult(), AbsolutePath()] = None
    """Benchmarks: a directory of task files (YAML) of your own, whose names `tasks` may then have."""
    num_fewshot: Annotated[int | None, SameResult(unless_best_is_task=True), ChangesBenchmarks()] = Field(
        default=None, ge=0
    )
    """Benchmarks: solved examples before each document; none: as many as its task says."""
    task_limit: Annotated[int | None, SameResult(unless_best_is_task=True), ChangesBenchmarks()] = Field(
        default=None, ge=1
    )
    """Benchmarks: documents of each, the first ones; none takes all of them."""
    task_batch_size: Annotated[int, SameResult(), ChangesBenchmarks()] = Field(default=16, ge=1)
    """Benchmarks: sequences that run at once; vLLM takes as many as fit."""
    apply_chat_template: Annotated[bool, SameResult(unless_best_is_task=True), ChangesBenchmarks()] = False
    """Benchmarks: put their questions into the model's chat template, which an instruction-tuned model
    needs for tasks that it completes freely."""
    task_max_new_tokens: Annotated[int | None, SameResult(unless_best_is_task=True), ChangesBenchmarks()] = Field(
        default=None, ge=1
    )
    """Benchmarks: the longest answer, thoughts included; none: as its task says. A model that thinks
    needs thousands."""
    think_end: Annotated[str | None, SameResult(unless_best_is_task=True), ChangesBenchmarks()] = None
    """Benchmarks: what ends the thoughts of a model that thinks, as </think>: only what follows is the answer."""
    continuations: Annotated[int, SameResult()] = Field(default=0, ge=0)
    """`rayqd eval`: so many prompts of held-out rows are continued by teacher, rounded model and student, of at most
    rollout.max_new_tokens tokens: KL and agreement by position along the data's and the student's own completions, and
    texts side by side. `rayqd compare`: by the student of every run, and arms are judged along that text, too.
    0: none."""
    rtn: Annotated[bool, SameResult()] = True
    """`rayqd eval`: run the benchmarks on the model rounded to nearest, too."""

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str]) -> dict[str, str]:
        return check_columns(columns)

    @model_validator(mode="after")
    def _tasks_go_with_evaluations(self) -> EvalConfig:
        if self.tasks_every and (not self.every or self.tasks_every % self.every):
            raise ValueError(
                f"tasks_every={self.tasks_every} is no multiple of every={self.every}: benchmarks are a part of some "
                "evaluations"
            )
        return self

    @property
    def steps_between_tasks(self) -> int:
        """The steps between two runs of the benchmarks while training; 0 for none."""
        return (self.every if self.tasks_every is None else self.tasks_every) if self.tasks else 0


class CheckpointConfig(Section):
    """When checkpoints are written, and how many are kept."""

    every: Annotated[int, SameResult(), Housekeeping()] = Field(default=100, ge=1)
    """Steps between checkpoints; the last step always leaves one."""
    keep: Annotated[int, SameResult(), Housekeeping()] = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    best: Annotated[
        Literal["kl_to_teacher", "top1_agreement", "perplexity", "text_perplexity"] | TaskMetric | None,
        IgnoredBy("quantize"),
    ] = None
    """Export the weights that were best by this, of all evaluations (eval.every, and one after the last step). They are
    kept in checkpoints/best-..., beside the newest ones. none: those of the last step. One of eval.tasks stands for its
    first metric; another is TASK/METRIC, as arc_easy/acc_norm or gsm8k/exact_match,flexible-extract."""


class RayConfig(Section):
    """The Ray cluster, and on which of its nodes the roles are placed."""

    address: str | None = None
    """A running cluster ("auto", "ray://host:10001", "host:6379"); none uses RAY_ADDRESS, or else starts Ray on this
    machine."""
    dashboard: bool = False
    """Start the dashboard when Ray is started on this machine."""
    placement_timeout_seconds: float = Field(default=120, gt=0)
    """How long to wait for the cluster to make room for the roles; a cluster that must start nodes first needs more."""
    stall_seconds: float = Field(default=300, gt=0)
    """How long a rollout worker at work may make no token, a teacher read no batch, a learner end no microbatch, the
    controller not answer, or any of their processes give no sign of life: it is ended, and the run tells where it
    stood. What stood still is started once more, and ends the run the second time; a controller that does not answer,
    and a process that was stopped as a whole, count as deaths (`max_restarts`). The first batch of a
    teacher's process and the first step of a learner's may compile, and have four times as long; signs of life and the
    controller's answers do not wait for that, and have no more. Starting and waiting do not count."""
    max_restarts: Annotated[int, SameResult()] = Field(default=3, ge=0)
    """How often learner or controller may die with no new step between; they are started again, and go on from the
    last checkpoint. Rollout workers and teachers always are."""
    cluster_file: Path | None = None
    """How far the cluster can grow: its cluster.yaml, or its RayJob or RayCluster of KubeRay. None: what its autoscaler
    reads, where that runs on this machine, and otherwise only the nodes that run."""
    learner_labels: list[str] = Field(default=[])
    """Labels that a learner worker's node must have: KEY=VALUE, or KEY=!VALUE for what it must not have."""
    rollout_labels: list[str] = Field(default=[])
    """Labels that a rollout worker's node must have, as ray.io/accelerator-type=L4."""
    teacher_labels: list[str] = Field(default=[])
    """Labels that a teacher's node must have."""

    @model_validator(mode="after")
    def _labels_are_pairs(self) -> RayConfig:
        for role in ("learner", "rollout", "teacher"):
            for label in self._labels(role):
                key, _, value = label.partition("=")
                if not key or not value:
                    raise ValueError(f'{role}_labels: "{label}" is not of the form KEY=VALUE')
        return self

    @property
    def cluster_address(self) -> str | None:
        """The cluster that a run connects to, by `address` or RAY_ADDRESS; None for a Ray of this machine's own."""
        address = self.address or os.environ.get("RAY_ADDRESS")
        return None if address in ("", "local") else address  # the second is Ray's word for none

    def selector(self, role: str) -> dict[str, str]:
        """Return the labels that nodes of `role` must have, as Ray's label_selector."""
        return {key: value for key, _, value in (label.partition("=") for label in self._labels(role))}

    def _labels(self, role: str) -> list[str]:
        return {"learner": self.learner_labels, "rollout": self.rollout_labels, "teacher": self.teacher_labels}[role]
