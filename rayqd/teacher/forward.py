"""The teacher's forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from rayqd.errors import ModelError
from rayqd.model.hidden_states import completion_states
from rayqd.model.load import output_head
from rayqd.model.token_limit import TokenLimit, run_batches
from rayqd.teacher.payloads import HiddenSpec, PayloadSpec
from rayqd.types import HiddenPayload, Rollout, TeacherPayload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _do_nothing() -> None:
    pass


class Teacher:
    """Reads rollouts, at most `max_batch_tokens` at once, and computes a payload of each completion.

    Fewer at once where memory does not suffice; raises WorkerError for a row that does not fit in it.
    """

    def __init__(self, model: PreTrainedModel, max_batch_tokens: int, spec: PayloadSpec | None = None) -> None:
        """Score with the payloads of `spec`, or without one with hidden states."""
        self._model = model
        self._limit = TokenLimit(
            tokens=max_batch_tokens,
            setting="teacher.max_batch_tokens",
            advice="the teacher needs more GPU memory of its own, or lower data.max_length or rollout.max_new_tokens",
        )
        self._spec = spec or HiddenSpec()
        self.on_progress: Callable[[], None] = _do_nothing

    def score(self, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        """Return a payload for each rollout; None where its numbers are inf or nan."""
        return self._compute(rollouts, self._spec)

    def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]:
        """Return the hidden states of each completion, whatever payload it scores with.

        Raises ModelError where they are not finite.
        """
        computed = self._compute(rollouts, HiddenSpec())
        payloads = [payload for payload in computed if isinstance(payload, HiddenPayload)]
        if len(payloads) < len(computed):
            raise ModelError(
                f"the teacher's hidden states of {len(computed) - len(payloads)} of {len(computed)} sequences are inf "
                "or nan: choose another model.dtype, or mend the teacher's weights"
            )
        return payloads

    @torch.inference_mode()
    def _compute(self, rollouts: Sequence[Rollout], spec: PayloadSpec) -> list[TeacherPayload | None]:
        head = output_head(self._model)
        payloads: dict[int, TeacherPayload | None] = {}

        def compute(indices: list[int]) -> list[TeacherPayload | None]:
            batch = [rollouts[i] for i in indices]
            states = completion_states(self._model, batch).to(head.device)  # whose GPU may be another one
            parts = torch.split(states, [rollout.num_loss_tokens for rollout in batch])
            return [spec.compute(own, head, rollout) for own, rollout in zip(parts, batch, strict=True)]

        for indices, computed in run_batches(self._model, rollouts, self._limit, compute):
            payloads |= zip(indices, computed, strict=True)
            self.on_progress()
        return [payloads[i] for i in range(len(rollouts))]
