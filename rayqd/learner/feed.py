"""The learner's view of the rest of the run: what it asks for, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from rayqd.data.example_set import RunningText
from rayqd.events import ReportedEvent
from rayqd.metrics.fidelity import TaskResults
from rayqd.types import Batch, IntArray, ScoredRollout, WireTensor


class Feed(Protocol):
    """Each worker has one. Methods wait until what they return is there."""

    def batch(self, step: int) -> Batch:
        """Return this worker's share of step `step`, counted from 0; all workers ask at the same time."""
        ...

    def heldout(self) -> list[ScoredRollout]:
        """Return the held-out rows with the teacher's hidden states."""
        ...

    def text(self) -> RunningText | None:
        """Return the text whose perplexity is measured beside the held-out rows; None without `eval.text`."""
        ...

    def calibration(self) -> list[IntArray]:
        """Return token ids of training rows, of `quant.calibration_tokens` tokens."""
        ...

    def publish(self, version: int, tensors: Mapping[str, WireTensor]) -> None:
        """Have rollouts written with `tensors` from now on; nothing but on rank 0."""
        ...

    def run_tasks(self, version: int, tensors: Mapping[str, WireTensor]) -> TaskResults:
        """Have a rollout worker run the benchmarks with `tensors`; nothing but on rank 0."""
        ...

    def report(self, event: ReportedEvent) -> None:
        """Tell the driver of `event`; nothing but on rank 0."""
        ...

    def when_stopping(self, stop: Callable[[], int]) -> None:
        """Call `stop`, in a thread of its own, once the run is to end before its last step; report what it returns."""
        ...
