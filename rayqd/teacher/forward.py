"""The teacher's forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rayqd.errors import ModelError
from rayqd.model.states import by_tokens, completion_states
from rayqd.teacher.payloads import Answer, hidden_states
from rayqd.types import HiddenPayload, Rollout, TeacherPayload

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Teacher:
    """Reads rollouts, at most `max_batch_tokens` at once, and says what it thinks of their completions."""

    def __init__(self, model: PreTrainedModel, max_batch_tokens: int, answer: Answer = hidden_states) -> None:
        self._model = model
        self._max_batch_tokens = max_batch_tokens
        self._answer = answer

    def score(self, rollouts: Sequence[Rollout]) -> list[TeacherPayload | None]:
        """In the form that the teacher answers in; None where its numbers are inf or nan."""
        return self._read(rollouts, self._answer)

    def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]:
        """The states from which every distribution follows exactly, whatever form it answers in else.

        Raises ModelError where they are not finite.
        """
        scores = self._read(rollouts, hidden_states)
        found = [each for each in scores if isinstance(each, HiddenPayload)]
        if len(found) < len(scores):
            raise ModelError(
                f"the teacher's hidden states of {len(scores) - len(found)} of {len(scores)} sequences are inf or nan: "
                "choose another model.dtype, or mend the teacher's weights"
            )
        return found

    @torch.inference_mode()
    def _read(self, rollouts: Sequence[Rollout], answer: Answer) -> list[TeacherPayload | None]:
        scores: dict[int, TeacherPayload | None] = {}
        for indices in by_tokens(rollouts, self._max_batch_tokens):
            batch = [rollouts[i] for i in indices]
            scores |= dict(zip(indices, answer(completion_states(self._model, batch), batch), strict=True))
        return [scores[i] for i in range(len(rollouts))]
