"""The held-out rows of a run with several teachers, each scored by its own, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence

from rayqd.config import Config
from rayqd.losses.output_head import Head
from rayqd.model.load import load_model, output_head
from rayqd.model.source import teacher_directories
from rayqd.teacher.forward import Teacher
from rayqd.types import Example, HiddenPayload, Rollout, ScoredRollout


def score_by_teacher(config: Config, examples: Sequence[Example]) -> tuple[list[ScoredRollout], list[Head]]:
    """Return the rows, each with its teacher's hidden states, and the output heads, [V, d], by the teachers' number.

    Raises ModelError where states are not finite.
    """
    rollouts = [Rollout.from_data(example, step=-1, index=index) for index, example in enumerate(examples)]
    states: dict[int, HiddenPayload] = {}
    heads: list[Head] = []
    for number, directory in enumerate(teacher_directories(config)):
        model = load_model(directory, config.model.dtype)
        own = [rollout for rollout in rollouts if rollout.teacher == number]
        hidden = Teacher(model, config.teacher.max_batch_tokens).hidden(own) if own else []
        states |= zip((rollout.index for rollout in own), hidden, strict=True)
        heads.append(output_head(model).detach())
        del model
    return [ScoredRollout(rollout=rollout, payload=states[rollout.index]) for rollout in rollouts], heads
