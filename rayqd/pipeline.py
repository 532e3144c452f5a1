"""The loop between plan, rollouts, teacher and learner. No Ray, no torch: it carries references, never bytes.

        learner ── batch(step) ──► start every step up to step + max_staleness
                                        │
              on-policy: prompts ─► rollouts.write(…, newest weights) ─┐
              off-policy: the data's own completions ──────────────────┴─► teachers.score(…)
                                                                                │
        learner ◄── the step's scored sequences ────────────────────────────────┘
        learner ── publish(version, weights) ─► used by every rollout that starts from now on
        learner ── batch(step, attempt) ─► makes the step anew, once for each attempt: some of it was lost with a node

The learner's demand is the only clock. Sequences of step s are written by weights no older than s - max_staleness,
because they start when a step no earlier than that is asked for and its weights are published. What comes from the data
needs no weights: it is scored `prefetch_steps` further ahead, once what the learner waited for is there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rayqd.audit import DATA, Call
from rayqd.data.plan import Plan, steps_ahead
from rayqd.errors import WorkerError
from rayqd.types import Example, PlannedSequence, Rollout, RolloutSummary, TeacherPayload, WireTensor

MAX_ATTEMPTS = 5  # at a step whose parts are lost
NO_NUMBERS = "the teacher computed inf or nan"

_FROM_DATA = Call(worker=DATA)

T = TypeVar("T", covariant=True)


class Ref(Awaitable[T], Protocol[T]):
    """A reference to a value somewhere in the cluster, to be awaited by who needs it: Ray's ObjectRef."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The student at one version: how to get codes and scales."""

    version: int  # optimizer steps behind them
    tensors: Ref[Mapping[str, WireTensor]]
    lineage: int = 0  # of a learner that was started again, whose versions are not the first one's


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRef:
    """A rollout somewhere in the cluster, and what the pipeline must know of it."""

    summary: RolloutSummary
    ref: Ref[Rollout]
    wrote: Call = _FROM_DATA  # who made it


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRef:
    """A rollout and the teacher's payload for it, both somewhere in the cluster."""

    rollout: RolloutRef
    payload: Ref[TeacherPayload]
    scored: Call | None = None  # who made the payload; None of held-out rows


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRef:
    """A teacher's payload somewhere in the cluster, and who made it."""

    payload: Ref[TeacherPayload]
    scored: Call


class LostError(Exception):
    """Something that was made is gone, because the node that held it is."""


def lost_for_good(what: str) -> str:
    """Return the message of the error that ends a run after `MAX_ATTEMPTS` at `what`."""
    return f"{what} was lost with its node {MAX_ATTEMPTS} times: nodes go faster than they come, start again later"


class Rollouts(Protocol):
    """The rollout workers, as the pipeline sees them."""

    async def write(
        self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights
    ) -> list[RolloutRef]:
        """Write a completion for each of `sequences`, whose prompts are `prompts`, with the student at `weights`.

        Raises LostError where the weights were lost with their node.
        """
        ...


class Teachers(Protocol):
    """The teachers, as the pipeline sees them."""

    async def score(self, rollouts: Sequence[RolloutRef]) -> list[ScoreRef | None]:
        """Return a payload for each rollout; None for one that would be inf or nan.

        Raises LostError where a rollout was lost with its node.
        """
        ...

    async def hidden(self, rollouts: Sequence[RolloutRef]) -> list[Ref[TeacherPayload]]:
        """Return hidden states for each rollout, whatever payload the run has; raises as `score` does."""
        ...


class Pipeline:
    """What every step trains on, made ahead of the learner's demand by at most `max_staleness` steps."""

    def __init__(
        self,
        *,
        plan: Plan,
        examples: Sequence[Example],
        num_steps: int,
        max_staleness: int,
        prefetch_steps: int = 0,
        rollouts: Rollouts,
        teachers: Teachers,
        put: Callable[[Rollout], Ref[Rollout]],
        quarantine: Callable[[RolloutRef, str], Awaitable[None]],
    ) -> None:
        """Hold what makes a step.

        `put` stores a rollout that comes from the data where others can refer to it; `quarantine` is called with every
        rollout that is left out, and why: an engine wrote something else than was asked for, or its payload would be
        inf or nan. It may raise to end the run.
        """
        self._plan = plan
        self._examples = examples
        self._num_steps = num_steps
        self._max_staleness = max_staleness
        self._prefetch_steps = prefetch_steps
        self._rollouts = rollouts
        self._teachers = teachers
        self._put = put
        self._quarantine = quarantine
        self._weights: Weights | None = None  # of the newest version
        self._published = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[list[ScoredRef]]] = {}
        self._prefetched: dict[int, asyncio.Task[list[ScoredRef]]] = {}  # the data's part of steps not begun yet
        self._attempts: dict[int, int] = {}  # of the steps that were lost

    def publish(self, weights: Weights) -> None:
        """Start rollouts with these from now on; a learner that went back to a checkpoint gets every step made anew."""
        if weights.version <= self._version:
            for tasks in (self._tasks, self._prefetched):
                for task in tasks.values():
                    task.cancel()
                tasks.clear()
            self._attempts.clear()
        self._weights = weights
        self._published.set()
        self._published = asyncio.Event()

    def allow_staleness(self, max_staleness: int) -> None:
        """Have rollouts lag behind by at most so many versions from the next `batch` on."""
        self._max_staleness = max_staleness

    async def batch(self, step: int, attempt: int = 0) -> list[ScoredRef]:
        """Return all that the learner trains on at `step`, by index; start the work of the steps it may run ahead of.

        Waits for version `step` of the weights where the student writes for these steps: one learner worker may ask
        before another has published them, and a version that nothing is written with is not published. A higher
        `attempt` than before says that what the last one returned is lost; all learner workers make the same attempt.
        """
        steps = steps_ahead(step, self._max_staleness, self._num_steps)
        while self._version < step and self._plan.needs_student(steps):
            await self._published.wait()
        self._forget_before(step)
        if attempt > self._attempts.get(step, 0):
            self._attempts[step] = attempt
            self._tasks.pop(step, None)
        for ahead in steps:
            if ahead not in self._tasks:
                self._tasks[ahead] = asyncio.create_task(self._make(ahead, self._weights))
        batch = await self._tasks[step]
        self._prefetch(range(steps.stop, min(steps.stop + self._prefetch_steps, self._num_steps)))
        return batch

    async def heldout(self, examples: Sequence[Example]) -> list[ScoredRef]:
        """Return the teacher's hidden states for rows that are never trained on."""
        rows = [Rollout.from_data(example, step=-1, index=index) for index, example in enumerate(examples)]
        rollouts = [RolloutRef(summary=row.summary, ref=self._put(row)) for row in rows]
        payloads = await self._teachers.hidden(rollouts)
        return [ScoredRef(rollout=r, payload=p) for r, p in zip(rollouts, payloads, strict=True)]

    def _prefetch(self, steps: range) -> None:
        for step in steps:
            if step not in self._prefetched and step not in self._tasks and (rollouts := self._from_plan(step)):
                task = self._prefetched[step] = asyncio.create_task(self._score(rollouts))
                task.add_done_callback(_look_at)  # a run that ends asks for it no more

    async def _make(self, step: int, weights: Weights | None) -> list[ScoredRef]:
        """Make the step, again where parts of it are lost with a node before it is complete."""
        for _ in range(MAX_ATTEMPTS):
            with contextlib.suppress(LostError):
                return await self._make_once(step, weights)
        raise WorkerError(lost_for_good(f"step {step + 1}"))

    async def _make_once(self, step: int, weights: Weights | None) -> list[ScoredRef]:
        """Write, then score what is not scored yet: where roles share cores, teacher and rollouts slow each other."""
        on_policy = [s for s in self._plan.step(step) if s.on_policy]
        prefetched = self._prefetched.get(step)
        rollouts = [] if prefetched else self._from_plan(step)
        if on_policy:
            assert weights is not None, "`batch` waits for them"
            prompts = [self._examples[s.example] for s in on_policy]
            rollouts += await self._rollouts.write(on_policy, prompts, weights)
        scored = await self._score(sorted(rollouts, key=lambda rollout: rollout.summary.index))
        if prefetched:
            self._prefetched.pop(step, None)  # whatever becomes of it: a second attempt makes all of it
            scored = sorted([*scored, *await prefetched], key=lambda each: each.rollout.summary.index)
        if not scored:
            faults = [rollout.summary.fault for rollout in rollouts if rollout.summary.fault]
            raise WorkerError(f"no sequence of step {step + 1} can be trained on: {[NO_NUMBERS, *faults][-1]}")
        return scored

    async def _score(self, rollouts: list[RolloutRef]) -> list[ScoredRef]:
        """Return those of one step that can be trained on."""
        faults = [rollout.summary.fault for rollout in rollouts]
        sound = [rollout for rollout, fault in zip(rollouts, faults, strict=True) if not fault]
        scores = iter(await self._teachers.score(sound) if sound else [])
        scored: list[ScoredRef] = []
        for rollout, fault in zip(rollouts, faults, strict=True):
            score = None if fault else next(scores)
            if score is None:
                await self._quarantine(rollout, fault or NO_NUMBERS)
            else:
                scored.append(ScoredRef(rollout=rollout, payload=score.payload, scored=score.scored))
        return scored

    def _from_plan(self, step: int) -> list[RolloutRef]:
        """Return what the data gives to the step."""
        return [self._from_data(step, s.index, s.example) for s in self._plan.step(step) if not s.on_policy]

    def _from_data(self, step: int, index: int, example: int) -> RolloutRef:
        rollout = Rollout.from_data(self._examples[example], step=step, index=index, number=example)
        return RolloutRef(summary=rollout.summary, ref=self._put(rollout))

    @property
    def _version(self) -> int:
        return -1 if self._weights is None else self._weights.version

    def _forget_before(self, step: int) -> None:
        for earlier in [s for s in self._tasks if s < step]:
            del self._tasks[earlier]
            self._attempts.pop(earlier, None)


def _look_at(task: asyncio.Task[list[ScoredRef]]) -> None:
    """Take note of how it ended, of which asyncio would speak otherwise."""
    if not task.cancelled():
        task.exception()
