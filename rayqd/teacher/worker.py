"""The teacher: reads rollouts in 16 bits and answers with what its distributions follow from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rayqd.config import Config
from rayqd.errors import StorageError
from rayqd.types import HiddenPayload, Rollout, TeacherPayload

if TYPE_CHECKING:
    from rayqd.teacher.cache import ScoreCache


Scores = list[TeacherPayload | None]  # None where the teacher's numbers are inf or nan
Read = Callable[[Sequence[Rollout]], Scores]


class Scorer(Protocol):
    def score(self, rollouts: Sequence[Rollout]) -> Scores: ...
    def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTeacher:
    """A teacher, and what it remembers."""

    scorer: Scorer
    cache: ScoreCache | None
    answers: str  # who it is and what `score` answers, to tell its scores from others'
    hidden_answers: str  # the same of `hidden`


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringReport:
    """What one call did."""

    seconds: float
    num_tokens: int  # that went through the model
    num_cache_hits: int  # sequences
    num_cache_misses: int  # sequences; those that the student has written are neither
    quarantined: tuple[int, ...]  # which of the call's sequences have no scores


class TeacherWorker:
    _rank = -1  # Ray asks for the name of an actor also where __init__ failed

    def __init__(self, rank: int, load: Callable[[], LoadedTeacher]) -> None:
        self._rank = rank
        self._load = load
        self._teacher: LoadedTeacher | None = None

    def __repr__(self) -> str:
        return f"TeacherWorker(rank={self._rank})"

    def start(self) -> float:
        """Seconds it took to load the model."""
        began = time.perf_counter()
        if self._teacher is None:
            self._teacher = self._load()
        return time.perf_counter() - began

    def score(self, *rollouts: Rollout) -> tuple[ScoringReport, Scores]:
        """What was done, and the scores of each rollout in the form that the teacher answers in."""
        teacher = self._started()
        return self._scored(rollouts, teacher.scorer.score, teacher.answers)

    def hidden(self, *rollouts: Rollout) -> tuple[ScoringReport, Scores]:
        """The same as hidden states, for what must be exact."""
        teacher = self._started()
        return self._scored(rollouts, lambda missing: [*teacher.scorer.hidden(missing)], teacher.hidden_answers)

    def _started(self) -> LoadedTeacher:
        self.start()
        assert self._teacher is not None
        return self._teacher

    def _scored(self, rollouts: Sequence[Rollout], read: Read, answers: str) -> tuple[ScoringReport, Scores]:
        began = time.perf_counter()
        from_data = [i for i, rollout in enumerate(rollouts) if not rollout.on_policy]
        keys = self._keys(rollouts, from_data, answers)
        found = self._remembered(keys)
        written = [i for i, rollout in enumerate(rollouts) if rollout.on_policy]
        missing = [i for i in from_data if i not in found]
        num_hits = len(found)
        # Apart, so that what the student wrote is read in the same batches whatever is remembered: the same bits.
        for indices in (written, missing):
            found |= dict(zip(indices, read([rollouts[i] for i in indices]), strict=True))
        self._remember({keys[i]: found[i] for i in missing if i in keys})
        report = ScoringReport(
            seconds=time.perf_counter() - began,
            num_tokens=sum(rollouts[i].num_tokens for i in [*written, *missing]),
            num_cache_hits=num_hits,
            num_cache_misses=len(keys) - num_hits,
            quarantined=tuple(i for i in range(len(rollouts)) if found[i] is None),
        )
        return report, [found[i] for i in range(len(rollouts))]

    def _keys(self, rollouts: Sequence[Rollout], from_data: list[int], answers: str) -> dict[int, str]:
        """The name of every sequence that may come again, by index."""
        if self._started().cache is None:
            return {}
        from rayqd.teacher.cache import score_key

        return {i: score_key(answers, rollouts[i]) for i in from_data}

    def _remembered(self, keys: dict[int, str]) -> dict[int, TeacherPayload | None]:
        cache = self._started().cache
        if cache is None:
            return {}
        return {i: scores for i, key in keys.items() if (scores := cache.get(key)) is not None}

    def _remember(self, fresh: dict[str, TeacherPayload | None]) -> None:
        cache = self._started().cache
        for key, scores in fresh.items():
            if cache is not None and scores is not None:
                cache.put(key, scores)


def teacher_loader(config: Config) -> Callable[[], LoadedTeacher]:
    """Loads the real teacher, in the process that calls it."""

    def load() -> LoadedTeacher:
        from rayqd.model.layers import compile_layers
        from rayqd.model.load import common_vocabulary, load_model, output_head
        from rayqd.model.source import student_directory, teacher_directory
        from rayqd.teacher.cache import weights_digest
        from rayqd.teacher.forward import Teacher
        from rayqd.teacher.payloads import make_answer

        student = student_directory(config)
        directory = teacher_directory(config)
        model = load_model(directory, config.model.dtype)
        if config.model.compile and output_head(model).is_cuda:
            compile_layers(model)
        vocab_size = common_vocabulary(student, directory)
        settings, temperature = config.teacher, config.distill.temperature
        cache = _open_cache(config)
        who = f"{weights_digest(directory)} {config.model.dtype}" if cache else ""
        form = "hidden" if settings.payload == "hidden" else (settings.payload, settings.top_k, temperature, vocab_size)
        return LoadedTeacher(
            scorer=Teacher(
                model, settings.max_batch_tokens, make_answer(settings, output_head(model)[:vocab_size], temperature)
            ),
            cache=cache,
            answers=f"{who} {form}",
            hidden_answers=f"{who} hidden",
        )

    return load


def _open_cache(config: Config) -> ScoreCache | None:
    """None when it is off, or when nobody asked for its directory and that cannot be written to."""
    from rayqd.teacher.cache import ScoreCache

    if config.teacher.cache_gib == 0:
        return None
    try:
        return ScoreCache(config.score_cache_dir, int(config.teacher.cache_gib * 2**30))
    except StorageError as error:
        if config.teacher.cache_dir is not None:
            raise
        logging.getLogger(__name__).warning("teacher scores are not kept: %s", error)
        return None
