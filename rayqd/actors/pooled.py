"""The pipeline's rollout workers and teachers as pools of actors. References go through here, the bytes do not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rayqd.actors.balance import split_evenly
from rayqd.actors.pool import Pool
from rayqd.pipeline import RolloutRef, Weights
from rayqd.teacher.worker import ScoringReport
from rayqd.types import Example, PlannedSequence


@dataclass
class RoleClock:
    """The work of a role by step: seconds summed over its actors, and tokens."""

    seconds: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, step: int, seconds: float, tokens: int) -> None:
        """Count one call's work for `step`."""
        self.seconds[step] += seconds
        self.tokens[step] += tokens

    @property
    def total_seconds(self) -> float:
        """Seconds of work over all steps."""
        return sum(self.seconds.values())

    def tokens_per_second(self, step: int) -> float | None:
        """Return the rate at `step`; None where nothing was done for it."""
        seconds = self.seconds.get(step)
        return self.tokens[step] / seconds if seconds else None


class PooledRollouts:
    """Spreads a step's sequences over the rollout workers."""

    def __init__(self, pool: Pool, clock: RoleClock) -> None:
        self._pool = pool
        self._clock = clock

    async def write(
        self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights
    ) -> list[RolloutRef]:
        """Write a rollout for each of `sequences`; see `Rollouts.write`."""
        shares = split_evenly([1] * len(sequences), len(self._pool.actors))
        parts = await asyncio.gather(
            *(
                self._write_share([sequences[i] for i in share], [prompts[i] for i in share], weights)
                for share in shares
                if share
            )
        )
        return [rollout for part in parts for rollout in part]

    async def _write_share(
        self, sequences: list[PlannedSequence], prompts: list[Example], weights: Weights
    ) -> list[RolloutRef]:
        refs = await self._pool.call("write", sequences, prompts, weights, num_returns=1 + len(sequences))
        seconds, summaries = await refs[0]
        self._clock.add(sequences[0].step, seconds, sum(s.num_loss_tokens for s in summaries))
        return [replace(summary, rollout=ref) for summary, ref in zip(summaries, refs[1:], strict=True)]


@dataclass
class CacheCounts:
    """Sequences whose scores the teachers found in their cache, and those that they had to read, by step."""

    hits: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    misses: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, step: int, report: ScoringReport) -> None:
        """Count one call's sequences for `step`."""
        self.hits[step] += report.num_cache_hits
        self.misses[step] += report.num_cache_misses


class PooledTeachers:
    """Spreads rollouts over the teachers by tokens, longest first."""

    def __init__(self, pool: Pool, clock: RoleClock, cache: CacheCounts) -> None:
        self._pool = pool
        self._clock = clock
        self._cache = cache

    async def score(self, rollouts: Sequence[RolloutRef], *, exact: bool = False) -> list[Any]:
        """Score `rollouts`; see `Teachers.score`."""
        method = "hidden" if exact else "score"
        shares = [s for s in split_evenly([r.num_tokens for r in rollouts], len(self._pool.actors)) if s]
        parts = await asyncio.gather(*(self._score_share(method, [rollouts[i] for i in share]) for share in shares))
        scores = dict(pair for share, part in zip(shares, parts, strict=True) for pair in zip(share, part, strict=True))
        return [scores[i] for i in range(len(rollouts))]

    async def _score_share(self, method: str, rollouts: list[RolloutRef]) -> list[Any]:
        refs = await self._pool.call(method, *(r.rollout for r in rollouts), num_returns=1 + len(rollouts))
        report: ScoringReport = await refs[0]
        self._clock.add(rollouts[0].step, report.seconds, report.num_tokens)
        self._cache.add(rollouts[0].step, report)
        return [None if i in report.quarantined else ref for i, ref in enumerate(refs[1:])]
