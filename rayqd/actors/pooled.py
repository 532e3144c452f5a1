"""The pipeline's rollout workers and teachers as pools of actors. References go through here, the bytes do not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from rayqd.actors.balance import split_evenly
from rayqd.actors.pool import Pool
from rayqd.actors.ray_types import as_argument
from rayqd.actors.workers import RolloutActor, TeacherActor
from rayqd.metrics.fidelity import TaskResults
from rayqd.pipeline import Ref, RolloutRef, ScoreRef, Weights
from rayqd.rollout.sampling import SamplingRules
from rayqd.spans import Span
from rayqd.teacher.worker import ScoringReport
from rayqd.types import EngineProbe, Example, PlannedSequence, Rollout, TeacherPayload


@dataclass
class RoleClock:
    """The work of a role by step: seconds summed over its actors, and tokens."""

    seconds: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    tokens: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    spans: list[Span] = field(default_factory=list[Span])  # of the actors' first calls
    past_seconds: float = 0.0  # of the steps that are forgotten

    def add(self, step: int, seconds: float, tokens: int, spans: Sequence[Span] = ()) -> None:
        """Count one call's work for `step`."""
        self.spans += spans
        self.seconds[step] += seconds
        self.tokens[step] += tokens

    @property
    def total_seconds(self) -> float:
        """Seconds of work over all steps."""
        return self.past_seconds + sum(self.seconds.values())

    def forget(self, step: int) -> None:
        """Keep of a step that is done its part of the total alone."""
        self.past_seconds += self.seconds.pop(step, 0.0)
        self.tokens.pop(step, None)

    def tokens_per_second(self, step: int) -> float | None:
        """Return the rate at `step`; None where nothing was done for it."""
        seconds = self.seconds.get(step)
        return self.tokens[step] / seconds if seconds else None


class PooledRollouts:
    """Spreads a step's sequences over the rollout workers."""

    def __init__(self, pool: Pool[RolloutActor], clock: RoleClock) -> None:
        self.rules: SamplingRules | None = None  # come with the rows
        self._pool = pool
        self._clock = clock
        self._probes: list[EngineProbe] = []

    def probes(self, version: int) -> tuple[EngineProbe, ...]:
        """Return what workers predicted whose first weights were those of `version`."""
        return tuple(probe for probe in self._probes if probe.policy_version == version)

    def forget(self, step: int) -> None:
        """Drop the probes of versions that nobody asks for once `step` is done."""
        self._probes = [probe for probe in self._probes if probe.policy_version > step]

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

    async def run_tasks(self, weights: Weights) -> TaskResults:
        """Have one worker run the benchmarks with `weights`, between what it writes."""
        _, (results,), _ = await self._pool.call(RolloutActor.run_tasks, 1, weights)
        return await results

    async def _write_share(
        self, sequences: list[PlannedSequence], prompts: list[Example], weights: Weights
    ) -> list[RolloutRef]:
        assert self.rules is not None
        report, refs, wrote = await self._pool.call(
            RolloutActor.write, len(sequences), sequences, prompts, weights, self.rules
        )
        if report.probe:
            self._probes.append(report.probe)
        num_tokens = sum(summary.num_loss_tokens for summary in report.rollouts)
        self._clock.add(sequences[0].step, report.seconds, num_tokens, report.spans)
        rollouts = zip(report.rollouts, refs, strict=True)
        return [RolloutRef(summary=summary, ref=ref, wrote=wrote) for summary, ref in rollouts]


@dataclass
class CacheCounts:
    """Sequences whose scores the teachers found in their cache, those that they had to read, and bytes, by step."""

    hits: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    misses: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    num_bytes: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # of all payloads

    def add(self, step: int, report: ScoringReport) -> None:
        """Count one call's sequences for `step`."""
        self.hits[step] += report.num_cache_hits
        self.misses[step] += report.num_cache_misses
        self.num_bytes[step] += report.num_bytes

    def forget(self, step: int) -> None:
        """Drop the counts of a step that is done."""
        self.hits.pop(step, None)
        self.misses.pop(step, None)
        self.num_bytes.pop(step, None)


class _Score(Protocol):
    """`score` or `hidden` of a teacher."""

    def __call__(
        self, teacher: TeacherActor, /, *rollouts: Rollout
    ) -> tuple[ScoringReport, *tuple[TeacherPayload | None, ...]]: ...


class PooledTeachers:
    """Spreads rollouts over the actors of their teachers by tokens, longest first."""

    def __init__(self, pools: Sequence[Pool[TeacherActor]], clock: RoleClock, cache: CacheCounts) -> None:
        """Take the actors of each teacher, in the order in which rollouts number the teachers."""
        self._pools = pools
        self._clock = clock
        self._cache = cache

    async def score(self, rollouts: Sequence[RolloutRef]) -> list[ScoreRef | None]:
        """Score `rollouts`; see `Teachers.score`."""
        return await self._spread(TeacherActor.score, rollouts)

    async def hidden(self, rollouts: Sequence[RolloutRef]) -> list[Ref[TeacherPayload]]:
        """Read `rollouts`; see `Teachers.hidden`."""
        scores = await self._spread(TeacherActor.hidden, rollouts)
        present = [score.payload for score in scores if score is not None]
        assert len(present) == len(scores), "hidden states are not quarantined"
        return present

    async def _spread(self, method: _Score, rollouts: Sequence[RolloutRef]) -> list[ScoreRef | None]:
        shares = [
            (pool, share) for teacher, pool in enumerate(self._pools) for share in _split(rollouts, teacher, pool)
        ]
        calls = (self._call(pool, method, [rollouts[i] for i in share]) for pool, share in shares)
        parts = zip(shares, await asyncio.gather(*calls), strict=True)
        scores = {i: score for (_, share), part in parts for i, score in zip(share, part, strict=True)}
        return [scores[i] for i in range(len(rollouts))]

    async def _call(
        self, pool: Pool[TeacherActor], method: _Score, rollouts: list[RolloutRef]
    ) -> list[ScoreRef | None]:
        report, refs, scored = await pool.call(
            method, len(rollouts), *(as_argument(rollout.ref) for rollout in rollouts)
        )
        step = rollouts[0].summary.step
        self._clock.add(step, report.seconds, report.num_tokens, report.spans)
        self._cache.add(step, report)
        payloads = cast("list[Ref[TeacherPayload]]", refs)  # those of which none is None
        return [
            None
            if i in report.quarantined
            else ScoreRef(payload=payload, scored=replace(scored, is_kept=i in report.kept))
            for i, payload in enumerate(payloads)
        ]


def _split(rollouts: Sequence[RolloutRef], teacher: int, pool: Pool[TeacherActor]) -> list[list[int]]:
    """Return the indices of that teacher's rollouts, divided among its actors; of an actor without any, none."""
    own = [i for i, rollout in enumerate(rollouts) if rollout.summary.teacher == teacher]
    shares = split_evenly([rollouts[i].summary.num_tokens for i in own], len(pool.actors))
    return [[own[i] for i in share] for share in shares if share]
