"""Data, objective, optimizer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Field, JsonValue, field_validator, model_validator

from rayqd.config.sections.base import ImportPath, Section
from rayqd.config.sections.markers import (
    ChangesCompletions,
    ChangesHeldOut,
    HubIdOrPath,
    NotSwept,
    OfOneSource,
    SameResult,
)
from rayqd.config.sections.sources import SourceConfig, check_columns

# Arguments of transformers' apply_chat_template, and what it gives the template itself.
_TAKEN_VARIABLES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "strftime_now",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


ONE_AND_SEVERAL = (
    "is of one data set and data.sources names several: leave one of the two out; each of data.sources has its own "
    "source, split, subset and columns"
)

_OF_ONE_SOURCE = ("source", "split", "subset", "columns")


def _names_as_tables(sources: object) -> object:
    """Take the name of a data set for a table that has no more."""
    if not isinstance(sources, list | tuple):
        return sources
    entries = cast("list[object]", sources)
    return [{"source": entry} if isinstance(entry, str) else entry for entry in entries]


class DataConfig(Section):
    """Where prompts, and off-policy completions, come from."""

    source: Annotated[str, ChangesHeldOut(), HubIdOrPath(only_files=True), OfOneSource()] = "allenai/tulu-3-sft-mixture"
    """A file (.jsonl, .json, .parquet, .csv, .tsv, .txt, .arrow; also compressed), several (data/*.jsonl), a URL of one
    (s3://, https://), a directory, a data set id on the hub, or "quickstart" (the set that ships with rayqd)."""
    split: Annotated[str, ChangesHeldOut(), ChangesCompletions(), OfOneSource()] = "train"
    """Split of a data set, or an expression: train[:5%], train[100:200], train+test. Of files, which have one split
    whatever it is called, only the part in brackets counts."""
    subset: Annotated[str | None, ChangesHeldOut(), ChangesCompletions(), OfOneSource()] = None
    """Subset (configuration) of a hub data set, where it has some."""
    sources: Annotated[
        list[SourceConfig],
        BeforeValidator(_names_as_tables),
        ChangesHeldOut(),
        ChangesCompletions(),
        HubIdOrPath(only_files=True),
    ] = Field(default=[])
    """Several data sets in place of data.source: a table [[data.sources]] each, with source and, where needed, weight,
    split, subset, columns, limit and name. The weights say which share of the sequences each gives. A flag names files
    alone (a.jsonl,b.jsonl), or takes JSON; one field of the first one is --data.sources.0.weight 2."""
    max_length: Annotated[int, ChangesHeldOut(of_eval_source_too=True), ChangesCompletions()] = Field(
        default=1024, ge=64
    )
    """Tokens of prompt and completion together; longer prompts are left out, longer completions too."""
    min_room: Annotated[int, ChangesHeldOut(of_eval_source_too=True), ChangesCompletions()] = Field(default=32, ge=1)
    """A prompt must leave at least this many tokens for its completion."""
    on_bad_row: Annotated[Literal["auto", "error", "skip"], ChangesHeldOut()] = "auto"
    """What a row that cannot be read does. error: stops the run; skip: is left out and counted; auto: error in a file
    of yours, skip in a data set of the hub."""
    reader: Annotated[str | None, ChangesHeldOut(of_eval_source_too=True), ChangesCompletions()] = None
    """A function of yours that reads data.source and eval.source, as package.module:function: called with source and
    split, it yields rows as dicts, in any of the forms that a .jsonl file may have."""
    filter: Annotated[str | None, ChangesHeldOut(of_eval_source_too=True), ChangesCompletions()] = None
    """A function of yours that says which rows stay, as package.module:function: called with a row as it was read, a
    dict, it returns True or False. Rows that it leaves out are counted."""
    columns: Annotated[dict[str, str], ChangesHeldOut(of_eval_source_too=True), ChangesCompletions(), OfOneSource()] = (
        Field(default={})
    )
    """Where the source has other columns than rayqd recognizes: messages, prompt, input, completion, chosen, text,
    system or tools, each with the column that it is, as prompt=problem,completion=solution. All others are ignored."""
    chat_template: Annotated[str | None, ChangesHeldOut(of_eval_source_too=True), ChangesCompletions()] = None
    """A chat template in place of the model's own: the path of a .jinja file, or its text."""
    chat_template_kwargs: Annotated[
        dict[str, JsonValue], ChangesHeldOut(of_eval_source_too=True), ChangesCompletions()
    ] = Field(default={})
    """Variables of the chat template, as enable_thinking=false,reasoning_effort=low: for data, rollouts, `rayqd
    generate` and the benchmarks of `rayqd eval` alike."""
    train_on: Annotated[Literal["last", "all"], ChangesHeldOut(of_eval_source_too=True)] = "last"
    """Which of the assistant's turns a row of data trains: the last one, or all of them. Rollouts are last turns."""
    date: Annotated[
        str | None, ChangesHeldOut(of_eval_source_too=True), ChangesCompletions(), NotSwept("one date for all trials")
    ] = None
    """What a chat template is told that prints the date, as 2026-01-31 or 2026-01-31T12:00:00; none: when the run
    began, which its config.toml then says."""

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str]) -> dict[str, str]:
        return check_columns(columns)

    @field_validator("chat_template_kwargs")
    @classmethod
    def _kwargs_are_the_templates(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(kwargs.keys() & _TAKEN_VARIABLES):
            raise ValueError(f"{taken[0]} is set by rayqd: leave it out")
        if absent := [name for name, value in kwargs.items() if value is None]:
            raise ValueError(f"{absent[0]} has no value: leave it out")
        return kwargs

    @model_validator(mode="after")
    def _is_one_or_several(self) -> DataConfig:
        fields = DataConfig.model_fields
        given = [name for name in _OF_ONE_SOURCE if getattr(self, name) != fields[name].default]
        if self.sources and given:
            raise ValueError(f"data.{given[0]} {ONE_AND_SEVERAL}")
        return self

    @property
    def each_source(self) -> tuple[SourceConfig, ...]:
        """Return the data sets that are drawn from: `sources`, or else the one that `source` names."""
        one = SourceConfig.model_construct(
            source=self.source, split=self.split, subset=self.subset, columns=self.columns
        )
        return tuple(self.sources) or (one,)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Return what metrics and pages call each of them; one that is called as an earlier one gets its position."""
        names: list[str] = []
        for position, label in enumerate(source.label for source in self.each_source):
            names.append(f"{label}-{position}" if label in names else label)
        return tuple(names)

    def of_source(self, source: SourceConfig) -> DataConfig:
        """Return the settings with `source` alone as what is read."""
        own = {"source": source.source, "split": source.split, "subset": source.subset, "columns": source.columns}
        return self.model_copy(update={**own, "sources": []})

    @field_validator("date")
    @classmethod
    def _date_is_one(cls, date: str | None) -> str | None:
        if date is not None:
            try:
                datetime.fromisoformat(date)
            except ValueError:
                raise ValueError(f"{date} is no date: write 2026-01-31 or 2026-01-31T12:00:00") from None
        return date


class DistillConfig(Section):
    """The objective."""

    lmbda: float = Field(default=1.0, ge=0, le=1)
    """Share of each step's sequences that the student samples itself; 0 is off-policy, 1 on-policy. Kept exactly."""
    on_policy_after: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps that come first and train on the data alone; lmbda holds for the steps after them. Rows of
    data cost no sampling, and bring a student that is far from its teacher closer sooner."""
    loss: Literal["jsd", "skew_kl", "skew_reverse_kl", "total_variation", "k3"] | ImportPath = "jsd"
    """Of each token. jsd: GKD's generalized Jensen-Shannon divergence, a KL at either end of beta; skew_kl,
    skew_reverse_kl: KL(teacher‖m) and KL(student‖m) to a mixture m of both (DistiLLM); total_variation: half of
    Σ|teacher - student|; k3: from teacher.payload sampled alone, the estimator of the reverse KL that GRPO adds to its
    loss, whose gradient is in expectation the forward KL's. A function of yours, package.module:function, takes the
    logits of student and teacher, float32 [tokens, vocabulary], and the keywords beta and temperature, and returns a
    loss for each token, [tokens], of that token's logits alone; it needs teacher.payload hidden or logits."""
    beta: float = Field(default=1.0, ge=0, le=1)
    """jsd: 0: forward KL(teacher‖student); 1: reverse KL(student‖teacher); between: generalized Jensen-Shannon.
    skew_kl, skew_reverse_kl: DistiLLM's α, below 1: the weight in m of the side that is named first. total_variation
    and k3 do not read it; a function of yours gets it."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both sides' logits in the loss; a function of yours gets it, and the logits undivided."""
    normalize: bool = True
    """Divide jsd by beta · (1 - beta) where 0 < beta < 1, and the skew KLs by (1 - beta)². Close to the teacher every
    divergence is then the same function to second order, so a learning rate means the same at each beta; and towards 0
    and 1 jsd becomes the forward and the reverse KL, where GKD's own would vanish. All other losses stay as they are.
    """
    seq_kd: bool = False
    """Before training the teacher samples the completions of the off-policy share, which then trains on those instead
    of the data's own (sequence-level distillation). rollout.* says how it samples."""

    @model_validator(mode="after")
    def _beta_is_an_alpha(self) -> DistillConfig:
        if self.loss in ("skew_kl", "skew_reverse_kl") and self.beta == 1:
            raise ValueError(f"loss={self.loss} is 0 everywhere at beta=1: set beta below 1; DistiLLM's is 0.1")
        return self


class LearnerConfig(Section):
    """The optimizer, its schedule, and the workers that compute its steps."""

    num_workers: Annotated[int, SameResult()] = Field(default=1, ge=1)
    """Ray Train workers; each takes its share of every step. With adapters every one has the whole student; with
    adapter.kind none they shard weights, gradients and moments among them, so that models fit that fit on no GPU."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences a step, over all workers."""
    microbatch_tokens: Annotated[int, SameResult()] = Field(default=4096, ge=1)
    """Tokens that go through the model at once; changes memory and speed, not the result."""
    lr: float = Field(default=5e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """What the learning rate does after the warm-up."""
    warmup_ratio: float = Field(default=0.2, ge=0, le=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    max_bad_steps: Annotated[int, SameResult()] = Field(default=3, ge=0)
    """Steps whose gradient may be inf or nan: they change nothing, a line names them, and their batch is kept in
    bad-steps/ of the run's directory. One more ends the run."""
    gradient_checkpointing: Annotated[bool, SameResult()] = False
    """Recompute activations in the backward pass: less memory, a third more time."""
