"""The teacher: reads rollouts in 16 bits and answers with the hidden states that hold its distributions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rayqd.config import Config
from rayqd.types import Rollout, TeacherScores

HiddenStates = Callable[[Sequence[Rollout]], list[TeacherScores]]


class TeacherWorker:
    _rank = -1  # Ray asks for the name of an actor also where __init__ failed

    def __init__(self, rank: int, make_model: Callable[[], HiddenStates]) -> None:
        self._rank = rank
        self._make_model = make_model
        self._hidden_states: HiddenStates | None = None

    def __repr__(self) -> str:
        return f"TeacherWorker(rank={self._rank})"

    def start(self) -> float:
        """Seconds it took to load the model."""
        began = time.perf_counter()
        if self._hidden_states is None:
            self._hidden_states = self._make_model()
        return time.perf_counter() - began

    def score(self, *rollouts: Rollout) -> tuple[float, list[TeacherScores]]:
        """Seconds spent, and the scores of each rollout."""
        self.start()
        assert self._hidden_states is not None
        began = time.perf_counter()
        scores = self._hidden_states(rollouts)
        return time.perf_counter() - began, scores


def teacher_maker(config: Config) -> Callable[[], HiddenStates]:
    """Loads the real teacher, in the process that calls it."""

    def make() -> HiddenStates:
        from rayqd.model.load import load_model
        from rayqd.model.scoring import HiddenStateTeacher
        from rayqd.model.source import local_directory

        directory = local_directory(config.teacher_name, None if config.teacher.name else config.model.revision)
        return HiddenStateTeacher(load_model(directory, config.model.dtype), config.teacher.max_batch_tokens)

    return make
