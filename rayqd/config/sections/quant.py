"""The 4-bit grid, and what is trained inside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayqd.config.sections.base import Section
from rayqd.config.sections.markers import IgnoredBy

Format = Literal["int4", "nvfp4", "nf4", "fp4"]
Method = Literal["rtn", "gptq", "awq", "autoround"]
METHODS: dict[str, str] = {"rtn": "rounding to nearest", "gptq": "GPTQ", "awq": "AWQ", "autoround": "AutoRound"}


class QuantConfig(Section):
    """The 4-bit grid. One definition serves training, rollouts and export."""

    format: Format = "int4"
    """Number format. int4: evenly spaced codes; nvfp4: E2M1 codes, FP8 scales; nf4, fp4: bitsandbytes' tables."""
    group_size: int = Field(default=128, ge=8)
    """Weights along a row that share one scale; must divide every quantized layer's input width. Unless given: 128 for
    int4, 64 for nf4 and fp4, and always 16 for nvfp4."""
    rule: Literal["signed", "absmax", "asymmetric", "searched"] = "signed"
    """How a group's scale is chosen. signed: extreme / -8 (GGUF Q4_0's rule); absmax: amax / 7.5 (torchao's);
    asymmetric: a zero point too; searched: signed, either extreme shrunk to where the squared error is least.
    The formats other than int4 know absmax alone, and take it unless told."""
    double_quant: bool = False
    """nf4 and fp4: the scales themselves in 8 bits (4.13 bits a weight instead of 4.5)."""
    head: Literal["none", "int8", "int4"] = "none"
    """The output head, and with it the embedding where the two are one matrix. none: in 16 bits; int8, int4: symmetric
    codes in groups of `group_size`, rounded to nearest once and not trained. Loss, rollouts, results and exports
    compute with them, the teacher with its own head. Needs quant.format=int4."""
    method: Annotated[Method, IgnoredBy("distill")] = "gptq"
    """What `rayqd quantize` does: round to nearest, GPTQ, AWQ's activation-aware scaling, or AutoRound, which learns
    whether to round a weight up or down: nearest to the teacher, and slowest. Unless given: gptq for int4, else awq."""
    init: Annotated[Method, IgnoredBy("quantize")] = "gptq"
    """Where training starts: rtn: the weights as they are; gptq, awq, autoround: moved, by calibration, to where that
    method's codes are. Unless given: gptq for int4, else rtn."""
    calibration_tokens: int = Field(default=16384, ge=1)
    """Tokens of training rows that GPTQ, AWQ and AutoRound calibrate on."""
    rounding_steps: int = Field(default=200, ge=1)
    """AutoRound: steps of signed gradient descent a decoder layer, each on rows of at most 4096 of those tokens, or on
    one longer row."""
    act_order: bool = True
    """GPTQ rounds the columns of the largest inputs first; the groups stay where they are, so nothing is slower."""
    damping: float = Field(default=0.01, gt=0)
    """GPTQ: share of the mean diagonal of XᵀX that is added to its diagonal."""
    ignore: list[str] = Field(default=["lm_head"])
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
    def _format_allows(self) -> QuantConfig:
        if self.format == "nvfp4" and self.group_size != 16:
            raise ValueError(f"group_size={self.group_size}: nvfp4 has groups of 16; leave group_size out")
        if self.format in ("nf4", "fp4") and self.group_size not in _BNB_BLOCK_SIZES:
            raise ValueError(f"group_size={self.group_size}: bitsandbytes has blocks of 32, 64, 128, ... 4096")
        if self.format != "int4" and self.rule != "absmax":
            raise ValueError(f"rule={self.rule}: {self.format} knows absmax alone; leave rule out")
        if self.double_quant and self.format not in ("nf4", "fp4"):
            raise ValueError(f"double_quant is for nf4 and fp4, not {self.format}")
        if self.head != "none" and self.format != "int4":
            raise ValueError(f"head={self.head}: files of {self.format} have no place for it; leave head out")
        for field, value in (("init", self.init), ("method", self.method)):
            if value in ("gptq", "autoround") and self.format != "int4":
                raise ValueError(f"{field}={value}: {METHODS[value]} is for int4; {self.format} takes rtn or awq")
        return self


_USUAL_GROUP_SIZE = {"nvfp4": 16, "nf4": 64, "fp4": 64}
_BNB_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class AdapterConfig(Section):
    """What is trained: low-rank adapters inside the rounding, Q(W + s·BA), or all weights."""

    kind: Literal["lora", "none"] = "lora"
    """lora: train adapters; none: train the weights themselves (full QAT)."""
    rank: int = Field(default=32, ge=1)
    """Rank of the adapters."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapter is scaled by alpha / rank; none means 2 · rank."""
    targets: list[str] = Field(default=[])
    """Layers that get an adapter: the last parts of their names. An empty list means every quantized layer."""
    saturated: Literal["pass", "stop"] = "pass"
    """The gradient of weights whose code is at its limit: pass: as of all others; stop: none, which takes one more
    product of the backward pass and ends no nearer to the teacher."""
    placement: Literal["inside", "outside"] = "inside"
    """inside: Q(W + s·BA), which is what gets exported; outside: Q(W) + s·BA, merged and rounded at the very end (an
    ablation: at 4 bits it is worse than no training)."""
