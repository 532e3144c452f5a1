"""`rayqd bench step`: one optimizer step of the learner, rounding included, beside the same step of plain LoRA.

All run the same model on the same sequences with the same loss; teacher states are random and ready. Plain LoRA is
PEFT's own, its adapters in the model's dtype, which is the fastest way to run it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from rayqd.bench.shapes import random_model
from rayqd.bench.timing import Timing, measure
from rayqd.config import Config
from rayqd.learner.learner import Learner
from rayqd.losses.output_head import Head
from rayqd.model.adapters import adapted_names, lora_alpha
from rayqd.model.decoder_layers import checkpoint_layers
from rayqd.model.fake_quantize import fake_quantize
from rayqd.model.load import device, output_head, torch_dtype
from rayqd.model.qat import QATLinear
from rayqd.model.qat_experts import QATExperts
from rayqd.model.qat_lora import QATLoraLinear
from rayqd.model.student import Student
from rayqd.model.wire import to_wire
from rayqd.quant import quantizable_layers
from rayqd.types import HiddenPayload, Rollout, ScoredRollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The arms by the names of `--arms`.
ARMS = {
    "plain": "plain LoRA, 16-bit weights",
    "stop": "LoRA inside the rounding, stop",
    "pass": "LoRA inside the rounding, pass",
    "full": "full QAT",
    "rounding": "the rounding of pass alone",
}
DEFAULT_ARMS = ("plain", "stop", "pass", "rounding")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTiming:
    """One arm's optimizer step."""

    arm: str
    timing: Timing
    num_tokens: int
    flop: float  # of the model's own products in one step, recomputation not counted

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens of a step, prompts included, over its median time."""
        return self.num_tokens / self.timing.seconds


def bench_step(
    shape: str, config: Config, *, sequences: int, length: int, repeats: int, arms: Sequence[str] = DEFAULT_ARMS
) -> Iterator[StepTiming]:
    """Measure each of `arms` on a model of its own, which is gone before the next."""
    for arm in arms:
        yield _time_arm(arm, shape, _with_adapter(config, _ADAPTERS[arm]), sequences, length, repeats)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


_ADAPTERS: Mapping[str, Mapping[str, str]] = {
    "plain": {"kind": "lora"},
    "stop": {"kind": "lora", "saturated": "stop"},
    "pass": {"kind": "lora", "saturated": "pass"},
    "full": {"kind": "none"},
    "rounding": {"kind": "lora", "saturated": "pass"},
}


def _with_adapter(config: Config, adapter: Mapping[str, str]) -> Config:
    return config.model_copy(update={"adapter": config.adapter.model_copy(update=dict(adapter))})


def _time_arm(arm: str, shape: str, config: Config, sequences: int, length: int, repeats: int) -> StepTiming:
    model = random_model(shape, config.model.dtype)
    flop = 0.0 if arm == "rounding" else _count_flop(model, config, sequences * length)
    batch = _batch(model, sequences, length, config.model.dtype)
    num_loss_tokens = sum(s.rollout.num_loss_tokens for s in batch)
    student: Any = (_PlainLora if arm == "plain" else Student)(model, config)
    work: Callable[[], object]
    if arm == "rounding":
        work = partial(_round_all, student, config)
    else:
        learner = Learner(cast(Student, student), student.head, config)
        work = partial(learner.step, 0, batch, num_loss_tokens)
    timing = measure(work, device(), repeats=repeats)
    return StepTiming(arm=ARMS[arm], timing=timing, num_tokens=sequences * length, flop=flop)


@torch.no_grad()
def _round_all(student: Student, config: Config) -> None:
    """Round every layer's weights as often as one step of one microbatch does."""
    for _ in range(3 if config.learner.gradient_checkpointing else 2):
        for layer in student.layers.values():
            if isinstance(layer, QATExperts):
                layer()
                continue
            low_rank = layer.low_rank if isinstance(layer, QATLoraLinear) else None
            weight = layer.weight if isinstance(layer, QATLinear) else layer.linear.weight
            fake_quantize(weight, low_rank, layer.grid)


class _PlainLora:
    """What the learner asks of a student, without any rounding."""

    def __init__(self, model: PreTrainedModel, config: Config) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        adapter = config.adapter
        targets = list(adapted_names(quantizable_layers(model, config.quant), adapter))
        lora = LoraConfig(r=adapter.rank, lora_alpha=lora_alpha(adapter), target_modules=targets)  # pyright: ignore
        inject_adapter_in_model(lora, model)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(torch_dtype(config.model.dtype))
        self.model = model
        if config.learner.gradient_checkpointing:
            checkpoint_layers(model)

    @property
    def head(self) -> Head:
        return output_head(self.model)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


def _batch(model: PreTrainedModel, sequences: int, length: int, dtype: str) -> list[ScoredRollout]:
    """Make random sequences of `length` tokens, of which all but the first are trained."""
    random = np.random.default_rng(0)
    vocab_size, width = output_head(model).shape
    batch: list[ScoredRollout] = []
    for i in range(sequences):
        ids = random.integers(0, vocab_size, length, dtype=np.int32)
        rollout = Rollout(
            step=0, index=i, on_policy=False, prompt_ids=ids[:1], completion_ids=ids[1:], policy_version=None
        )
        hidden = torch.randn(length - 1, width, dtype=torch_dtype(dtype))
        batch.append(ScoredRollout(rollout=rollout, payload=HiddenPayload(hidden=to_wire(hidden))))
    return batch


def _count_flop(model: PreTrainedModel, config: Config, num_tokens: int) -> float:
    """Count forward and input gradients of the decoder's linears, and the loss's three products; no attention."""
    linears = sum(m.weight.numel() for m in quantizable_layers(model, config.quant).values())
    return num_tokens * (2 * 2 * linears + 3 * 2 * output_head(model).numel())
