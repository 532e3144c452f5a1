"""Proof that the engines compute with what was published: their predictions beside the learner's own.

Both compute with the same codes, in another order of sums, so they differ by the roundings of their dtype. Each of a
layer's outputs is rounded by a share of at most u (2^-9 in bfloat16) of itself, and independent roundings of L layers
add up to u · sqrt(L) times some factor, of what tells the likely ids from the others. Measured on SmolLM2-135M (30
layers, vLLM's 4-bit kernel on a CPU with AMX): 0.9 and 1.3 %, a factor of about 1; the bound takes 8, which is 8.6 %.

In a mixture of experts a rounding may also send a token to another expert, where two are about as good: two right
engines then differ by what those two compute otherwise. So there it is the median of the tokens that counts, which
other weights move as well, and what it is held against is no less than what roundings do to the student itself: it
predicts the same tokens again with embeddings and routers that are off by what the roundings of all layers come to.
"""

# pyright: reportUnknownMemberType=false
# torch's signatures are partly without types.

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from rayqd.errors import WorkerError
from rayqd.losses.output_head import Head, logits_of
from rayqd.losses.rows import slices
from rayqd.model.hidden_states import completion_states
from rayqd.model.student import Student
from rayqd.types import EngineProbe, Rollout

_ROUNDING = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-12}  # a GPU may multiply float32 as TF32
_FACTOR = 8.0
_EXPERTS_FACTOR, _NUM_TRIALS = 3.0, 4  # of the largest error that the student's own roundings made in so many trials
_CHUNK_ROWS = 16384  # of the output head, so that its float32 copy is small


@torch.no_grad()
def engine_error(student: Student, probe: EngineProbe) -> float:
    """Return how far an engine's log-probabilities of its likeliest ids are from the student's, as a share.

    The root mean square of the differences, over that of what separates those ids from the vocabulary's mean; of a
    mixture of experts the median of the tokens'. Collective where the student is sharded.
    """
    own = _predict(student, probe)
    ids = torch.from_numpy(probe.top_ids.astype("int64")).to(own.device)
    return _share(student, own, ids, torch.from_numpy(probe.logprobs).to(own.device))


@torch.no_grad()
def rounding_error(student: Student, probe: EngineProbe, dtype: str) -> float:
    """Return the same share between the student and itself with roundings of `dtype` in embeddings and routers.

    The largest of a few trials; collective where the student is sharded.
    """
    own = _predict(student, probe)
    ids = torch.from_numpy(probe.top_ids.astype("int64")).to(own.device)
    size = _ROUNDING[dtype] * _num_layers(student) ** 0.5
    errors: list[float] = []
    for seed in range(_NUM_TRIALS):
        with _roundings(student, size, torch.Generator().manual_seed(seed)):
            errors.append(_share(student, own, ids, _predict(student, probe).gather(1, ids)))
    return max(errors)


def engine_error_bound(dtype: str, num_layers: int) -> float:
    """Return the largest share that roundings explain."""
    return _FACTOR * _ROUNDING[dtype] * num_layers**0.5


def check_engines(student: Student, probes: Sequence[EngineProbe], dtype: str) -> float | None:
    """Return the largest error of `probes`, None without any. Raises WorkerError beyond what roundings explain.

    Collective where the student is sharded.
    """
    if not probes:
        return None
    errors = [engine_error(student, probe) for probe in probes]
    worst = max(range(len(errors)), key=lambda i: errors[i] if errors[i] == errors[i] else float("inf"))
    bound = engine_error_bound(dtype, _num_layers(student))
    if student.routers and not errors[worst] <= bound:
        bound = max(bound, _EXPERTS_FACTOR * rounding_error(student, probes[worst], dtype))
    if not errors[worst] <= bound:
        raise WorkerError(
            f"the rollout engine does not compute with the published weights: its log-probabilities are off by "
            f"{errors[worst]:.1%} of their spread, and roundings to {dtype} explain {bound:.1%}: use another vLLM of "
            "0.26 to 0.33 or another model.dtype, or distil off-policy (distill.lmbda = 0), which needs no engine"
        )
    return errors[worst]


def _num_layers(student: Student) -> int:
    return cast(Any, student.model.config).get_text_config().num_hidden_layers


def _predict(student: Student, probe: EngineProbe) -> Tensor:
    """Return the student's log-probabilities of all ids at each token that the engine wrote, [C, V]."""
    rollout = Rollout(
        step=-1,
        index=0,
        on_policy=True,
        prompt_ids=probe.prompt_ids,
        completion_ids=probe.completion_ids,
        policy_version=probe.policy_version,
    )
    return _logprobs(completion_states(student.model, [rollout]).float(), student.head)


def _share(student: Student, own: Tensor, ids: Tensor, others: Tensor) -> float:
    """Return the difference of `others` [C, k] from the student's `own` [C, V] at `ids`, over the spread of those."""
    picked = own.gather(1, ids)
    squares = (others - picked).square().mean(-1)
    spreads = (picked - own.mean(-1, keepdim=True)).square().mean(-1)
    if student.routers and bool(squares.isfinite().all()):
        return float((squares / spreads).sqrt().quantile(0.5))
    return float(squares.mean().sqrt() / spreads.mean().sqrt())


@contextmanager
def _roundings(student: Student, size: float, generator: torch.Generator) -> Generator[None]:
    """Let the student read embeddings, and its routers multiply with weights, that are off by shares of `size`."""

    def round_off(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        return (tensor.float() * (1 + size * noise)).to(tensor.dtype)

    def round_output(_: nn.Module, __: object, output: Any) -> Tensor:
        return round_off(output)

    routers = [student.model.get_submodule(name) for name in student.routers]
    weights = [p for router in routers for p in router.parameters() if p.dim() == 2]
    exact = [weight.detach().clone() for weight in weights]
    handle = student.model.get_input_embeddings().register_forward_hook(round_output)
    try:
        for weight in weights:
            weight.copy_(round_off(weight))
        yield
    finally:
        handle.remove()
        for weight, values in zip(weights, exact, strict=True):
            weight.copy_(values)


def _logprobs(states: Tensor, head: Head) -> Tensor:
    chunks = [logits_of(states, head[ids].float()) for ids in slices(len(head), _CHUNK_ROWS)]
    return torch.cat(chunks, dim=-1).log_softmax(-1)
