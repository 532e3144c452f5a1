"""The losses that `distill.loss` can name: rayqd's own, and those from outside by their import paths.

Shapes: T tokens, V vocabulary, d and D hidden widths of student and teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rayqd.extensions import check_signature, is_import_path, load_extension
from rayqd.losses.chunked import chunked_generalized_jsd
from rayqd.losses.divergence import curvature, generalized_jsd
from rayqd.losses.output_head import Head
from rayqd.losses.sampled import sampled_reverse_kl, sampled_reverse_kl_k3
from rayqd.losses.skew import skew_kl, skew_reverse_kl
from rayqd.losses.total_variation import total_variation


class LossOfLogits(Protocol):
    """Loss [T] of logits [T, V], token by token; differentiable with respect to the student's."""

    def __call__(self, student: Tensor, teacher: Tensor, /, *, beta: float, temperature: float) -> Tensor:
        """Return the loss of each token."""
        ...


class LossOfHiddenStates(Protocol):
    """The same of the hidden states [T, d] and [T, D] and the output heads [V, d] and [V, D]."""

    def __call__(
        self,
        student_hidden: Tensor,
        student_head: Head,
        teacher_hidden: Tensor,
        teacher_head: Head,
        /,
        *,
        beta: float,
        temperature: float,
    ) -> Tensor:
        """Return the loss of each token."""
        ...


LossOfLogprobs = Callable[[Tensor, Tensor], Tensor]  # of each sampled token, [T], student and teacher -> loss [T]


def _one(beta: float) -> float:
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A per-token loss by what it can be computed from: None where it cannot."""

    of_logits: LossOfLogits | None = None
    of_hidden_states: LossOfHiddenStates | None = None  # a faster way to what `of_logits` gives chunk by chunk
    of_logprobs: LossOfLogprobs | None = None
    is_f_divergence: bool = False  # of top-k buckets, which merge ids, it is then a lower bound
    curvature: Callable[[float], float] = _one  # what `distill.normalize` divides by, of beta

    @property
    def payloads(self) -> tuple[str, ...]:
        """The values of `teacher.payload` from which it can be computed."""
        of_logits = ("hidden", "logits") if self.of_logits else ()
        of_buckets = ("topk",) if self.of_logits and self.is_f_divergence else ()
        return (*of_logits, *of_buckets, *(("sampled",) if self.of_logprobs else ()))


def _skew_kl(student: Tensor, teacher: Tensor, /, *, beta: float, temperature: float) -> Tensor:
    return skew_kl(student, teacher, alpha=beta, temperature=temperature)


def _skew_reverse_kl(student: Tensor, teacher: Tensor, /, *, beta: float, temperature: float) -> Tensor:
    return skew_reverse_kl(student, teacher, alpha=beta, temperature=temperature)


def _skew_curvature(alpha: float) -> float:
    """Return what either skew KL is to second order, as a multiple of the KL: its mixture is 1 - alpha times as far."""
    return (1.0 - alpha) ** 2


def _total_variation(student: Tensor, teacher: Tensor, /, *, beta: float, temperature: float) -> Tensor:
    return total_variation(student, teacher, temperature=temperature)


LOSSES: Mapping[str, Loss] = {
    "jsd": Loss(
        of_logits=generalized_jsd,
        of_hidden_states=chunked_generalized_jsd,
        of_logprobs=sampled_reverse_kl,
        is_f_divergence=True,
        curvature=curvature,
    ),
    "skew_kl": Loss(of_logits=_skew_kl, is_f_divergence=True, curvature=_skew_curvature),
    "skew_reverse_kl": Loss(of_logits=_skew_reverse_kl, is_f_divergence=True, curvature=_skew_curvature),
    "total_variation": Loss(of_logits=_total_variation, is_f_divergence=True),
    "k3": Loss(of_logprobs=sampled_reverse_kl_k3),
}


def load_loss(name: str) -> Loss:
    """Return the loss that a valid `distill.loss` names; raise ConfigError where one from outside cannot be loaded."""
    return _load_from_outside(name) if is_import_path(name) else LOSSES[name]


def _load_from_outside(path: str) -> Loss:
    function = load_extension(path, "distill.loss")
    check_signature(function, path, "distill.loss", ["student_logits", "teacher_logits"], ["beta", "temperature"])

    def of_logits(student: Tensor, teacher: Tensor, /, *, beta: float, temperature: float) -> Tensor:
        # In the model's 16 bits a softmax would be off by more than what training takes away.
        return function(student.float(), teacher.float(), beta=beta, temperature=temperature)

    return Loss(of_logits=of_logits)
