"""An event loop whose clock jumps to the next thing that is to happen, and roles that take their time by it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from rayqd.pipeline import RolloutRef, ScoreRef, Weights
from rayqd.types import Example, PlannedSequence
from tests.pipeline.recorded import RecordingRollouts, RecordingTeachers

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Waits for nobody, and moves the clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.now


def run_at_once(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` comes to, without waiting for any of the time that it takes."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


def now() -> float:
    return asyncio.get_running_loop().time()


class TimedRollouts(RecordingRollouts):
    """One worker, which writes a step after the other."""

    def __init__(self, seconds: float) -> None:
        super().__init__([])
        self.seconds = seconds
        self._worker = asyncio.Lock()

    async def write(
        self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights
    ) -> list[RolloutRef]:
        async with self._worker:
            await asyncio.sleep(self.seconds)
            return await super().write(sequences, prompts, weights)


class TimedTeachers(RecordingTeachers):
    """One worker, which scores a step after the other."""

    def __init__(self, seconds: float) -> None:
        super().__init__([])
        self.seconds = seconds
        self._worker = asyncio.Lock()

    async def score(self, rollouts: Sequence[RolloutRef]) -> list[ScoreRef | None]:
        async with self._worker:
            await asyncio.sleep(self.seconds)
            return await super().score(rollouts)
