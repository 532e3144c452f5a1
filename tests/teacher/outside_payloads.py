"""A teacher's payload as somebody outside of rayqd would write one: the test copies this file to where they would."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayqd.config.sections import TeacherConfig
from rayqd.teacher.payloads import PayloadSpec
from rayqd.types import Rollout, TeacherPayload


@dataclass(frozen=True, kw_only=True)
class MeanLogitPayload(TeacherPayload):
    """The teacher's logit of each completion token, less the mean of the token's logits: 4 bytes a token."""

    centred: NDArray[np.float32]  # [C]

    @staticmethod
    def token_loss(
        student_logits: Tensor, completion_ids: Tensor, /, *, centred: Tensor, beta: float, temperature: float
    ) -> Tensor:
        """Return half the squared difference of both sides' centred logits, [C]."""
        del beta
        scaled = student_logits.float() / temperature
        own = scaled.gather(1, completion_ids[:, None])[:, 0] - scaled.mean(-1)
        return (own - centred).square() / 2


@dataclass(frozen=True, kw_only=True)
class MeanLogit(PayloadSpec):
    """How it is computed."""

    payload_type = MeanLogitPayload
    temperature: float
    vocab_size: int

    @classmethod
    def from_settings(cls, settings: TeacherConfig, temperature: float, vocab_size: int) -> Self:
        """Read no setting but the temperature."""
        del settings
        return cls(temperature=temperature, vocab_size=vocab_size)

    def compute(self, states: Tensor, head: Tensor, rollout: Rollout) -> MeanLogitPayload | None:
        """Return a number a token, [C]."""
        logits = (states @ head[: self.vocab_size].t()).float() / self.temperature
        ids = torch.as_tensor(rollout.completion_ids, dtype=torch.int64, device=states.device)
        centred = logits.gather(1, ids[:, None])[:, 0] - logits.mean(-1)
        return MeanLogitPayload(centred=centred.cpu().numpy()) if bool(centred.isfinite().all()) else None
