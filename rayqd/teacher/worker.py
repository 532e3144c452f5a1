"""The teacher worker: reads rollouts in 16 bits and sends a payload of each, from disk where it is kept there."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rayqd.config import Config
from rayqd.errors import StorageError
from rayqd.model.import_transformers import import_transformers
from rayqd.spans import Span, span
from rayqd.stall import StallWatch
from rayqd.types import HiddenPayload, Rollout, TeacherPayload

if TYPE_CHECKING:
    from rayqd.teacher.cache import PayloadCache
    from rayqd.teacher.payloads import PayloadSpec


Payloads = list[TeacherPayload | None]  # None where the teacher's numbers are inf or nan
Compute = Callable[[Sequence[Rollout]], Sequence[TeacherPayload | None]]


class Scorer(Protocol):
    """The model behind a teacher worker; `rayqd.teacher.forward.Teacher` is the real one."""

    on_progress: Callable[[], None]  # called when it has read a batch

    def score(self, rollouts: Sequence[Rollout]) -> Payloads:
        """Return a payload for each rollout; None where its numbers are inf or nan."""
        ...

    def hidden(self, rollouts: Sequence[Rollout]) -> list[HiddenPayload]:
        """Return the hidden states of each completion."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTeacher:
    """A teacher, the payload that it scores with, and those that are kept from earlier."""

    scorer: Scorer
    spec: PayloadSpec
    cache: PayloadCache | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringReport:
    """What one call did."""

    seconds: float
    num_tokens: int  # that went through the model
    num_cache_hits: int  # sequences
    num_cache_misses: int  # sequences; those that the student has written are neither
    num_bytes: int  # of the payloads
    quarantined: tuple[int, ...]  # which of the call's sequences have no payload
    kept: tuple[int, ...] = ()  # which of them have one from the disk
    spans: tuple[Span, ...] = ()  # of a worker's first call


class TeacherWorker:
    """Loads a teacher when it is first asked for something, and keeps it."""

    def __init__(
        self,
        rank: int,
        load: Callable[[], LoadedTeacher],
        stall_seconds: float = math.inf,
        prepare: Callable[[], None] | None = None,
        teacher: int = 0,
    ) -> None:
        """Take what loads the model, and `prepare`, which imports what that takes.

        `stall_seconds` without a batch end the process, see `watch`. `teacher`: which of the run's teachers it is,
        whose rollouts alone it reads.
        """
        self.prepare = prepare
        self._rank = rank
        self._number = teacher
        self._load = load
        self.stall_seconds = stall_seconds
        self._watch: StallWatch | None = None
        self._teacher: LoadedTeacher | None = None
        self._has_scored = False

    def __repr__(self) -> str:
        return f"TeacherWorker(rank={self._rank})"

    def watch(self, file: Path) -> None:
        """End this process where no batch is read for `stall_seconds`, with every thread's stack in `file`."""
        if math.isfinite(self.stall_seconds):
            self._watch = StallWatch(file, self.stall_seconds)

    def start(self) -> float:
        """Load the teacher unless it is there; return the seconds that took."""
        began = time.perf_counter()
        self._loaded()
        return time.perf_counter() - began

    def score(self, *rollouts: Rollout) -> tuple[ScoringReport, Payloads]:
        """Return what was done, and the payload of each rollout."""
        teacher = self._loaded()
        return self._score(rollouts, teacher.scorer.score, teacher.spec)

    def hidden(self, *rollouts: Rollout) -> tuple[ScoringReport, Payloads]:
        """Return the same with hidden states for payloads, where the divergence must be exact."""
        from rayqd.teacher.payloads import HiddenSpec

        return self._score(rollouts, self._loaded().scorer.hidden, HiddenSpec())

    def _loaded(self) -> LoadedTeacher:
        if self._teacher is None:
            self._teacher = self._load()
            if self._watch:
                self._teacher.scorer.on_progress = self._watch.beat
        return self._teacher

    def _score(
        self, rollouts: Sequence[Rollout], compute: Compute, spec: PayloadSpec
    ) -> tuple[ScoringReport, Payloads]:
        began = time.perf_counter()
        assert all(rollout.teacher == self._number for rollout in rollouts), "a rollout came to another's teacher"
        cache = self._loaded().cache
        on_policy = [i for i, rollout in enumerate(rollouts) if rollout.on_policy]
        cached = _cached(cache, spec, rollouts)
        missing = [i for i, rollout in enumerate(rollouts) if not rollout.on_policy and i not in cached]
        payloads: dict[int, TeacherPayload | None] = {**cached}
        # Apart, so that what the student wrote is read in the same batches whatever is cached: the same bits.
        for indices in (on_policy, missing):
            if indices:
                with self._working(), nullcontext() if self._has_scored else span("first scores"):
                    payloads |= zip(indices, compute([rollouts[i] for i in indices]), strict=True)
                self._has_scored = True
        for i in missing:
            if cache is not None and (payload := payloads[i]) is not None:
                cache.put(spec, rollouts[i], payload)
        report = ScoringReport(
            seconds=time.perf_counter() - began,
            num_tokens=sum(rollouts[i].num_tokens for i in [*on_policy, *missing]),
            num_cache_hits=len(cached),
            num_cache_misses=0 if cache is None else len(missing),
            num_bytes=sum(payload.num_bytes for payload in payloads.values() if payload is not None),
            quarantined=tuple(i for i in range(len(rollouts)) if payloads[i] is None),
            kept=tuple(sorted(cached)),
        )
        return report, [payloads[i] for i in range(len(rollouts))]

    def _working(self) -> AbstractContextManager[None]:
        return self._watch.working(is_first=not self._has_scored) if self._watch else nullcontext()


def _cached(cache: PayloadCache | None, spec: PayloadSpec, rollouts: Sequence[Rollout]) -> dict[int, TeacherPayload]:
    """Return what is kept of the rollouts, by index; what the student writes does not come again."""
    if cache is None:
        return {}
    payloads = {i: cache.get(spec, rollout) for i, rollout in enumerate(rollouts) if not rollout.on_policy}
    return {i: payload for i, payload in payloads.items() if payload is not None}


@cache
def import_teacher() -> None:
    """Import all that `teacher_loader` needs, before there is a model to load."""
    with span("import torch"):
        import torch  # noqa: F401  # pyright: ignore[reportUnusedImport]
    with span("import transformers"):
        import_transformers()
        import rayqd.teacher.forward  # noqa: F401  # pyright: ignore[reportUnusedImport]


def teacher_loader(config: Config, gpu_share: float = 1.0, teacher: int = 0) -> Callable[[], LoadedTeacher]:
    """Return a function that loads one of `config.teachers`, in the process that calls it.

    `gpu_share`: GPUs that it has, or the part of one.
    """

    def load() -> LoadedTeacher:
        import_teacher()
        from rayqd.model.decoder_layers import compile_layers
        from rayqd.model.forward.of_model import describe_forward
        from rayqd.model.load import common_vocab_size, load_model, output_head
        from rayqd.model.source import student_directory, teacher_directories
        from rayqd.model.spread import plan_device_map
        from rayqd.teacher.forward import Teacher
        from rayqd.teacher.payloads import payload_spec

        student = student_directory(config)
        directory = teacher_directories(config)[teacher]
        with span("load model"):
            device_map = plan_device_map(directory, config, gpu_share)
            model = load_model(directory, config.model.dtype, device_map)
        if config.compiles_layers and output_head(model).is_cuda and device_map is None:
            compile_layers(model)
        spec = payload_spec(config, common_vocab_size(student, directory))
        with span("open cache"):
            cache = _open_cache(config, directory, describe_forward(model))
        return LoadedTeacher(scorer=Teacher(model, config.teacher.max_batch_tokens, spec), spec=spec, cache=cache)

    return load


def _open_cache(config: Config, directory: Path, forward: str) -> PayloadCache | None:
    """Return None when it is off, or when nobody asked for its directory and that cannot be written to."""
    from rayqd.teacher.cache import PayloadCache, TeacherIdentity, weights_digest

    if config.teacher.cache_gib == 0:
        return None
    identity = TeacherIdentity(weights=weights_digest(directory), dtype=config.model.dtype, forward=forward)
    try:
        return PayloadCache(config.payload_cache_dir, int(config.teacher.cache_gib * 2**30), identity)
    except StorageError as error:
        if config.teacher.cache_dir is not None:
            raise
        logging.getLogger(__name__).warning("teacher payloads are not kept: %s", error)
        return None
