"""A pipeline with recording fakes: no Ray, no torch."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from rayqd.audit import Call
from rayqd.data import Plan
from rayqd.pipeline import Pipeline, RolloutRef, ScoreRef, Weights
from rayqd.types import Example, PlannedSequence, Rollout, RolloutSummary

TEACHER = Call(worker="teacher-0")
EXAMPLES = [
    Example(row=i, prompt_ids=np.full(4, i, np.int32), completion_ids=np.full(3, i, np.int32)) for i in range(10)
]


class RecordingRollouts:
    def __init__(self, log: list[tuple[Any, ...]]) -> None:
        self.log = log
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(
        self, sequences: Sequence[PlannedSequence], prompts: Sequence[Example], weights: Weights
    ) -> list[RolloutRef]:
        self.log.append(("write", sequences[0].step, weights.version))
        await self.gate.wait()
        return [written(s, p, weights.version) for s, p in zip(sequences, prompts, strict=True)]


def written(sequence: PlannedSequence, prompt: Example, version: int) -> RolloutRef:
    """Refers to the sequence itself, which the pipeline never looks into."""
    summary = RolloutSummary(
        step=sequence.step, index=sequence.index, num_tokens=7, num_loss_tokens=3, policy_version=version
    )
    ref: Any = ("written", sequence.step, sequence.index, sequence.seed, prompt.row)
    return RolloutRef(summary=summary, ref=ref)


def weights(version: int) -> Weights:
    tensors: Any = f"weights {version}"
    return Weights(version=version, tensors=tensors)


class RecordingTeachers:
    def __init__(self, log: list[tuple[Any, ...]]) -> None:
        self.log = log
        self.unscored: set[tuple[int, int]] = set()  # step and index of sequences that it has no numbers for

    async def score(self, rollouts: Sequence[RolloutRef]) -> list[ScoreRef | None]:
        first = rollouts[0].summary
        self.log.append(("score", first.step, "written" if first.policy_version is not None else "data"))
        return [self._score(r) if (r.summary.step, r.summary.index) not in self.unscored else None for r in rollouts]

    def _score(self, rollout: RolloutRef) -> ScoreRef:
        payload: Any = ("payload", rollout.ref)
        return ScoreRef(payload=payload, scored=TEACHER)

    async def hidden(self, rollouts: Sequence[RolloutRef]) -> list[Any]:
        return [("hidden", r.ref) for r in rollouts]


def make(
    lmbda: float = 0.5, max_staleness: int = 0, num_steps: int = 6, prefetch_steps: int = 0
) -> tuple[Pipeline, list[tuple[Any, ...]]]:
    log: list[tuple[Any, ...]] = []

    async def quarantine(rollout: RolloutRef, reason: str) -> None:
        log.append(("quarantine", rollout.summary.step, rollout.summary.index, reason))

    def put(rollout: Rollout) -> Any:
        return rollout

    pipeline = Pipeline(
        plan=Plan(num_examples=(10,), batch_size=4, lmbda=lmbda, seed=1),
        examples=EXAMPLES,
        num_steps=num_steps,
        max_staleness=max_staleness,
        prefetch_steps=prefetch_steps,
        rollouts=RecordingRollouts(log),
        teachers=RecordingTeachers(log),
        put=put,
        quarantine=quarantine,
    )
    return pipeline, log


async def train(pipeline: Pipeline, steps: range) -> list[Any]:
    batches = []
    for step in steps:
        pipeline.publish(weights(step))
        batches.append(await pipeline.batch(step))
    return batches
