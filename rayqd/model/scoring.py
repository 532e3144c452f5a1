"""The teacher's forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rayqd.model.states import by_tokens, completion_states
from rayqd.model.wire import to_wire
from rayqd.types import Rollout, TeacherScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HiddenStateTeacher:
    """Hidden states in the model's own 16-bit type: 2·d bytes a token, exact for every divergence."""

    def __init__(self, model: PreTrainedModel, max_batch_tokens: int) -> None:
        self._model = model
        self._max_batch_tokens = max_batch_tokens

    @torch.inference_mode()
    def __call__(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        scores: dict[int, TeacherScores] = {}
        for indices in by_tokens(rollouts, self._max_batch_tokens):
            states = completion_states(self._model, [rollouts[i] for i in indices])
            each = states.split([rollouts[i].num_loss_tokens for i in indices])
            scores |= {i: TeacherScores(hidden=to_wire(hidden)) for i, hidden in zip(indices, each, strict=True)}
        return [scores[i] for i in range(len(rollouts))]
