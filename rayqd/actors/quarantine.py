"""Sequences that nobody can be trained on: left out of their step, recorded, and limited in number."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ray.exceptions import ObjectLostError

from rayqd.config import Config
from rayqd.errors import WorkerError
from rayqd.events import QuarantineEvent
from rayqd.pipeline import LostError, RolloutRef


class Quarantine:
    """Reports each such sequence, and ends the run when they are more than `teacher.max_bad_fraction` of it."""

    def __init__(self, config: Config, report: Callable[[QuarantineEvent], Awaitable[None]]) -> None:
        self._report = report
        self._max_fraction = config.teacher.max_bad_fraction
        self._max_sequences = int(self._max_fraction * config.learner.steps * config.learner.batch_size)
        self.num_sequences = 0
        self._seen: set[tuple[int, int]] = set()  # of the steps that are not done yet

    def forget(self, step: int) -> None:
        """Drop what a step that is done left out; its number stays."""
        self._seen = {seen for seen in self._seen if seen[0] > step}

    async def add(self, ref: RolloutRef, reason: str) -> None:
        """Report one, and why; raises WorkerError for one too many, LostError if the rollout was lost with its node."""
        try:
            rollout = await ref.ref
        except ObjectLostError:
            raise LostError(f"a rollout of step {ref.summary.step + 1}") from None
        if (ref.summary.step, ref.summary.index) in self._seen:  # the step was made again
            return
        self._seen.add((ref.summary.step, ref.summary.index))
        self.num_sequences += 1
        await self._report(
            QuarantineEvent(
                step=rollout.step + 1,
                index=rollout.index,
                reason=reason,
                on_policy=rollout.on_policy,
                policy_version=rollout.policy_version,
                prompt_ids=tuple(rollout.prompt_ids.tolist()),
                completion_ids=tuple(rollout.completion_ids.tolist()),
            )
        )
        if self.num_sequences > self._max_sequences:
            raise WorkerError(
                f"{self.num_sequences} sequences cannot be trained on (the last: {reason}), and "
                f"teacher.max_bad_fraction={self._max_fraction:g} of the run allows {self._max_sequences}: "
                "see quarantine.jsonl in the run's directory for their token ids; another model.dtype may help, or a "
                "higher fraction"
            )
