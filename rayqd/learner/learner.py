"""One optimizer step on the divergence from the teacher. Runs anywhere torch runs; knows nothing of Ray."""

# pyright: reportUnknownMemberType=false
# torch's signatures are partly without types.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayqd.config import Config
from rayqd.errors import ModelError
from rayqd.learner.distributed import SingleProcess
from rayqd.learner.objective import RoutedObjective
from rayqd.learner.schedule import learning_rate
from rayqd.losses.output_head import Head, as_heads
from rayqd.model.decoder_layers import compile_layers
from rayqd.model.hidden_states import batch_by_tokens, completion_states
from rayqd.model.out_of_memory import release_memory
from rayqd.model.sharding import full_tensor, shard_like
from rayqd.model.student import Student
from rayqd.model.token_limit import TokenLimit
from rayqd.types import Rollout, ScoredRollout

_NOBODYS = np.zeros(1, dtype=np.int32)  # a prompt or completion of the token that every vocabulary has
_IDLE = Rollout(step=-1, index=0, on_policy=False, prompt_ids=_NOBODYS, completion_ids=_NOBODYS, policy_version=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one optimizer step did."""

    loss: float  # nats a token, over the whole global batch
    grad_norm: float  # before clipping
    lr: float  # that the step used
    is_skipped: bool = False  # the gradient was inf or nan, and weights and moments are as they were


def do_nothing() -> None:
    """Do nothing: a learner's `before_update` where nobody needs to know."""


class Learner:
    """Student and optimizer.

    The loss of a step is the sum over its trained tokens divided by their number in the whole global batch, so neither
    microbatches nor the number of workers change what a step means.
    """

    def __init__(
        self,
        student: Student,
        teacher_heads: Head | Sequence[Head],
        config: Config,
        group: SingleProcess | None = None,
    ) -> None:
        """Take the teacher's output head, [V, D]; of several teachers theirs, by number."""
        self.student = student
        self.teacher_heads = as_heads(teacher_heads)
        self.settings = config.learner
        self.before_update: Callable[[], None] = do_nothing  # called when the weights are about to change, or to stay
        self.on_progress: Callable[[], None] = do_nothing  # called after each microbatch
        self._num_skipped = 0
        self._objective = RoutedObjective(config.distill, student.head, self.teacher_heads)
        self.group = group or SingleProcess()
        self.limit = _token_limit(config, can_be_lowered=not self.group.is_sharded)
        if config.compiles_layers and student.head.is_cuda and not self.group.is_sharded:
            compile_layers(student.model)
        self._parameters = list(student.parameters().values())
        self.optimizer = torch.optim.AdamW(
            self._parameters,
            lr=self.settings.lr,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def step(self, step: int, share: Sequence[ScoredRollout], num_loss_tokens: int) -> StepResult:
        """Step number `step`, on this worker's `share` of a batch that trains `num_loss_tokens` over all workers."""
        while (loss := self._accumulate(share, num_loss_tokens)) is None:
            release_memory()
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        self.group.all_reduce_sum([loss, *([] if self.group.is_sharded else gradients)])
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm))
        is_finite = bool(torch.isfinite(norm))
        if not is_finite:
            self._count_skipped(step, loss.item())
        lr = learning_rate(step, self.settings)
        self.before_update()
        if is_finite:
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = lr
            self.optimizer.step()
        return StepResult(loss=loss.item(), grad_norm=norm.item(), lr=lr, is_skipped=not is_finite)

    def _accumulate(self, share: Sequence[ScoredRollout], num_loss_tokens: int) -> Tensor | None:
        """Return the loss, and leave its gradient in the parameters, of this worker's share of a step.

        None where memory ran out, and the microbatches are smaller from now on: a backward pass may have ended half
        way, so that all of it is to be done again, which gives the same gradient.
        """
        self.optimizer.zero_grad(set_to_none=False)
        loss = torch.zeros((), device=self.student.head.device)
        rollouts = [scored.rollout for scored in share]
        microbatches = batch_by_tokens(self.student.model, rollouts, self.limit.tokens)
        num_rounds = self._num_rounds(len(microbatches))
        for indices in microbatches:
            try:
                loss += self._backward([share[i] for i in indices], num_loss_tokens)
            except RuntimeError as error:  # torch's are
                self.limit.lower_after(error, [rollouts[i].num_tokens for i in indices])
                return None
        for _ in range(len(microbatches), num_rounds):
            self._run_idle_microbatch()
        return loss

    def _count_skipped(self, step: int, loss: float) -> None:
        self._num_skipped += 1
        if self._num_skipped > self.settings.max_bad_steps:
            raise ModelError(
                f"step {step + 1}: the gradient is inf or nan (loss {loss:g}), and learner.max_bad_steps="
                f"{self.settings.max_bad_steps} such steps were skipped before: lower learner.lr, or choose another "
                "model.dtype; the same command goes on from the last checkpoint"
            )

    def _backward(self, microbatch: list[ScoredRollout], num_loss_tokens: int) -> Tensor:
        student_hidden = completion_states(self.student.model, [s.rollout for s in microbatch])
        loss = self._objective(student_hidden, microbatch).sum() / num_loss_tokens
        loss.backward()
        self.on_progress()
        return loss.detach()

    def _num_rounds(self, num_microbatches: int) -> int:
        """Microbatches that this worker goes through: as many as any, where each needs all workers for the weights."""
        return self.group.all_reduce_max(num_microbatches) if self.group.is_sharded else num_microbatches

    def _run_idle_microbatch(self) -> None:
        """Take part in the all-gathers of the others' microbatch, and add nothing to the gradient."""
        states = completion_states(self.student.model, [_IDLE])
        states.backward(torch.zeros_like(states))

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return everything a resumed run needs, as two named sets of tensors: `student` and `optimizer`.

        Of a sharded student this worker's rows; `load_state_dict` takes what `group.gather_full` makes of them.
        """
        moments: dict[str, Tensor] = {}
        for name, parameter in self.student.parameters().items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}:{key}"] = value
        return {"student": self.student.state_dict(), "optimizer": moments}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Become the learner that `state_dict` described."""
        self.student.load_state_dict(state["student"])
        named = self.student.parameters()
        for name, value in state["optimizer"].items():
            parameter_name, _, key = name.rpartition(":")
            parameter = named[parameter_name]
            self.optimizer.state[parameter][key] = self._placed(parameter, key, value)

    def _placed(self, parameter: Tensor, key: str, value: Tensor) -> Tensor:
        """Moments are where their parameter is; the step count too, as the optimizer is fused."""
        return value.to(parameter.device) if key == "step" else shard_like(parameter, value)


def _token_limit(config: Config, *, can_be_lowered: bool) -> TokenLimit:
    room = "" if config.learner.gradient_checkpointing else "set learner.gradient_checkpointing, "
    return TokenLimit(
        tokens=config.learner.microbatch_tokens,
        setting="learner.microbatch_tokens",
        advice=f"{room}lower data.max_length or rollout.max_new_tokens, or give the learner a GPU of its own; "
        "learner.microbatch_tokens decides only how many rows go together",
        can_be_lowered=can_be_lowered,
    )
