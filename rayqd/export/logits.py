"""Whether the files of an export compute what the student computes: its logits on a short row, by another code path.

The student runs rayqd's packed forward pass with its fake quantization; the files are loaded by transformers, which
unpacks the codes itself, and run with its own eager attention, its own masks and its own output head.

Shapes: T tokens, V ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rayqd.errors import ModelError
from rayqd.export.load import load_export
from rayqd.files import set_aside
from rayqd.losses.output_head import logits_of
from rayqd.model.hidden_states import completion_states
from rayqd.model.load import device, load_meta_model, output_head
from rayqd.model.student import Student
from rayqd.types import IntArray, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_TOKENS = 64
_TIMES_ROUNDING = 3  # two computations in one dtype are each about one rounding away from the exact one
_LEAST = 1e-4
_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float64}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitDifference:
    """How far an export's logits are from the student's: the root mean square, as a share of the logits' own."""

    difference: float
    rounding: float | None  # what computing in a wider dtype changes; None where that was not worth asking
    dtype: torch.dtype

    @property
    def limit(self) -> float:
        """Return the largest difference that rounding explains."""
        return max(_LEAST, torch.finfo(self.dtype).eps, _TIMES_ROUNDING * (self.rounding or 0.0))

    @property
    def is_rounding(self) -> bool:
        """Return whether the two are one model; a nan is none."""
        return self.difference <= self.limit

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"logits differ by {self.difference:.2g} of their size (rounding to {name}: at most {self.limit:.2g})"


def short_row(rollouts: Sequence[Rollout]) -> IntArray:
    """Return the first tokens of the first of `rollouts`, [T]; of the vocabulary where there are none."""
    if not rollouts:
        return np.arange(NUM_TOKENS, dtype=np.int32)
    first = rollouts[0]
    return np.concatenate([first.prompt_ids, first.completion_ids])[:NUM_TOKENS]


def compute_student_logits(student: Student, token_ids: IntArray) -> Tensor:
    """Compute the student's logits for every token but the first, [T - 1, V] float32 on the CPU, as it is exported.

    Collective where the student is sharded.
    """
    with student.as_exported():
        return compute_packed_logits(student.model, token_ids)


def compute_packed_logits(model: PreTrainedModel, token_ids: IntArray) -> Tensor:
    """Compute the same as training and evaluation do, from the hidden states and the output head of `model`."""
    with torch.no_grad():
        return logits_of(compute_packed_states(model, token_ids).float(), output_head(model).float()).cpu()


@torch.no_grad()
def compute_packed_states(model: PreTrainedModel, token_ids: IntArray) -> Tensor:
    """Compute the last hidden states of every token but the last, [T - 1, d], as training and evaluation do."""
    row = Rollout(
        step=-1,
        index=0,
        on_policy=False,
        prompt_ids=token_ids[:1],
        completion_ids=token_ids[1:],
        policy_version=None,
    )
    return completion_states(model, [row])


def compare_logits(directory: Path, expected: Tensor, token_ids: IntArray, dtype: str) -> LogitDifference:
    """Load the export in `directory` as transformers does and compare its logits with `expected`, [T - 1, V].

    Raises ModelError where it does not load.
    """
    model = load_export(directory, dtype, attention="eager", on=_device(directory), is_checked=False)
    own = model.dtype
    actual = _eager_logits(model, token_ids)
    found = LogitDifference(difference=_relative(actual - expected, expected), rounding=None, dtype=own)
    if found.is_rounding:
        return found
    for parameter in model.parameters():
        parameter.data = parameter.data.to(_WIDER[own])
    rounding = _relative(actual - _eager_logits(model, token_ids), expected)
    return LogitDifference(difference=found.difference, rounding=rounding, dtype=own)


def check_logits(directory: Path, expected: Tensor, token_ids: IntArray, dtype: str) -> LogitDifference:
    """Do the same, and raise ModelError, having set the files aside, where they are another model than the student."""
    found = compare_logits(directory, expected, token_ids, dtype)
    if not found.is_rounding:
        aside = set_aside(directory, "differs")
        raise ModelError(
            f"the export is not what was trained: its {found}; its files are in {aside}, not in {directory.name}: "
            "please report this with the model's config.json"
        )
    return found


@torch.no_grad()
def _eager_logits(model: PreTrainedModel, token_ids: IntArray) -> Tensor:
    ids = torch.from_numpy(token_ids.astype("int64"))[None].to(next(model.parameters()).device)
    return model(input_ids=ids, use_cache=False).logits[0, :-1].double().cpu()


def _relative(difference: Tensor, expected: Tensor) -> float:
    """Return the RMS of `difference` over that of the logits, without what the softmax does not see: a row's mean."""
    parts = (part.double() - part.double().mean(-1, keepdim=True) for part in (difference, expected))
    rms, size = (part.square().mean().sqrt().item() for part in parts)
    return rms / size if size else rms


def _device(directory: Path) -> torch.device:
    """Return the GPU where the model fits beside what is there, in float32 too, else the CPU."""
    if device().type == "cpu":
        return device()
    num_bytes = 4 * sum(parameter.numel() for parameter in load_meta_model(directory).parameters())
    free, _ = torch.cuda.mem_get_info()
    return device() if free > 2 * num_bytes else torch.device("cpu")
