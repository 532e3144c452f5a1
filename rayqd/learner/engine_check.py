"""Proof that the engines compute with what was published: their predictions beside the learner's own.

Both compute with the same codes, in another order of sums, so they differ by the roundings of their dtype. Each of a
layer's outputs is rounded by a share of at most u (2^-9 in bfloat16) of itself, and independent roundings of L layers
add up to u · sqrt(L) times some factor, of what tells the likely ids from the others. Measured on SmolLM2-135M (30
layers, vLLM's 4-bit kernel on a CPU with AMX): 0.9 and 1.3 %, a factor of about 1; the bound takes 8, which is 8.6 %.
"""

# pyright: reportUnknownMemberType=false
# torch's signatures are partly without types.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from rayqd.errors import WorkerError
from rayqd.losses.output_head import Head, logits_of
from rayqd.losses.rows import slices
from rayqd.model.hidden_states import completion_states
from rayqd.model.student import Student
from rayqd.types import EngineProbe, Rollout

_ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-12}  # a GPU may multiply float32 as TF32
_FACTOR = 8.0
_CHUNK_ROWS = 16384  # of the output head, so that its float32 copy is small


@torch.no_grad()
def engine_error(student: Student, probe: EngineProbe) -> float:
    """Return how far an engine's log-probabilities of its likeliest ids are from the student's, as a share.

    The root mean square of the differences, over that of what separates those ids from the vocabulary's mean.
    Collective where the student is sharded.
    """
    rollout = Rollout(
        step=-1,
        index=0,
        on_policy=True,
        prompt_ids=probe.prompt_ids,
        completion_ids=probe.completion_ids,
        policy_version=probe.policy_version,
    )
    states = completion_states(student.model, [rollout]).float()
    own = _logprobs(states, student.head)
    ids = torch.from_numpy(probe.top_ids.astype("int64")).to(own.device)
    picked = own.gather(1, ids)
    difference = torch.from_numpy(probe.logprobs).to(own.device) - picked
    spread = picked - own.mean(-1, keepdim=True)
    return float(difference.square().mean().sqrt() / spread.square().mean().sqrt())


def engine_error_bound(dtype: str, num_layers: int) -> float:
    """Return the largest share that roundings explain."""
    return _FACTOR * _ROUNDING[dtype] * num_layers**0.5


def check_engines(student: Student, probes: Sequence[EngineProbe], dtype: str) -> float | None:
    """Return the largest error of `probes`, None without any. Raises WorkerError beyond what roundings explain."""
    if not probes:
        return None
    worst = max(engine_error(student, probe) for probe in probes)
    layers: int = cast(Any, student.model.config).get_text_config().num_hidden_layers
    bound = engine_error_bound(dtype, layers)
    if not worst <= bound:
        raise WorkerError(
            f"the rollout engine does not compute with the published weights: its log-probabilities are off by "
            f"{worst:.1%} of their spread, and roundings to {dtype} explain {bound:.1%}: use another vLLM of 0.26 to "
            "0.33 or another model.dtype, or distil off-policy (distill.lmbda = 0), which needs no engine"
        )
    return worst


def _logprobs(states: Tensor, head: Head) -> Tensor:
    chunks = [logits_of(states, head[ids].float()) for ids in slices(len(head), _CHUNK_ROWS)]
    return torch.cat(chunks, dim=-1).log_softmax(-1)
