"""When each step of a contender ended, a line of JSON each: written in its process, read in the one that compares."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayqd.bench.head_to_head.process_watch import CpuClock

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from rayqd.bench.head_to_head.workload import Workload

WARM_UP_STEPS = 1  # not in the median, whoever makes them: compilers, caches, allocator


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """The steps that a contender has done."""

    ends: tuple[float, ...]  # seconds since the epoch, by step

    @property
    def seconds(self) -> list[float]:
        """Return what each step took, those of the warm-up left out."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)][WARM_UP_STEPS - 1 :]

    def median_cpu_seconds(self, cpu: CpuClock) -> float | None:
        """Return what the median step took of all cores together; None where it was too short to be looked at."""
        pairs = list(zip(self.ends, self.ends[1:], strict=False))[WARM_UP_STEPS - 1 :]
        used = [seconds for pair in pairs if (seconds := cpu.between(*pair)) is not None]
        return statistics.median(used) if used else None

    @property
    def median_seconds(self) -> float | None:
        """Return the median step; None where there is none beside the warm-up."""
        return statistics.median(self.seconds) if self.seconds else None


class StepRecorder:
    """Writes the moment at which a step has ended, once the GPU has, too."""

    def __init__(self, file: Path, workload: Workload) -> None:
        self._file = file
        self._workload = workload
        self._began = time.time()
        self._num_done = 0

    def end_step(self) -> bool:
        """Record that a step has ended; return whether it was the last one: of all, or of those that there is time for.

        The time counts from the end of the first step.
        """
        _wait_for_gpu()
        self._num_done += 1
        now = time.time()
        self._began = now if self._num_done == 1 else self._began
        with self._file.open("a") as stream:
            stream.write(json.dumps({"step": self._num_done, "time": now}) + "\n")
        is_late = now - self._began >= self._workload.seconds and self._num_done > WARM_UP_STEPS
        return is_late or self._num_done >= self._workload.steps


def read_step_times(file: Path) -> StepTimes:
    """Return what `file` says; no steps where it is absent."""
    lines = file.read_text().splitlines() if file.exists() else []
    return StepTimes(ends=tuple(float(json.loads(line)["time"]) for line in lines))


def trainer_callback(file: Path, workload: Workload) -> TrainerCallback:
    """Return what a Trainer of transformers calls after each optimizer step, and which ends it."""
    from transformers import TrainerCallback

    recorder = StepRecorder(file, workload)

    class _Recorded(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop |= recorder.end_step()
            return control

    return _Recorded()


def linear_layers(model: Any) -> Sequence[str]:
    """Return the last parts of the names of all linear layers but the output head: those that rayqd rounds."""
    from torch import nn

    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return sorted(names - {"lm_head"})


def _wait_for_gpu() -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
