"""Benchmarks on a rollout worker's engine, with the weights that the learner published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rayqd.config import Config
from rayqd.metrics.fidelity import TaskResults
from rayqd.rollout.engine import Engine
from rayqd.stall import Watch

if TYPE_CHECKING:
    from rayqd.evals.while_training import TrainingBenchmarks


class RunTasks(Protocol):
    """Runs the benchmarks on an engine."""

    def open(self) -> None:
        """Read them, which may take long."""
        ...

    def __call__(self, engine: Engine, name: str, watch: Watch) -> TaskResults:
        """Return what the weights that `engine` has, called `name`, score; `watch` watches over it."""
        ...


class EngineTasks:
    """`eval.tasks`, opened in the worker's process when they are first run."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._benchmarks: TrainingBenchmarks | None = None

    def open(self) -> None:
        """Read them, if that is not done; raises what `TrainingBenchmarks` does."""
        from rayqd.evals.while_training import TrainingBenchmarks

        if self._benchmarks is None:
            self._benchmarks = TrainingBenchmarks(self._config)

    def __call__(self, engine: Engine, name: str, watch: Watch) -> TaskResults:
        """Run them. Raises ConfigError for another engine than vLLM."""
        from rayqd.errors import ConfigError
        from rayqd.rollout.language_model import EngineModel
        from rayqd.rollout.vllm import VLLMEngine

        if not isinstance(engine, VLLMEngine):
            raise ConfigError("eval.where=rollout needs vLLM as the rollouts' engine: set it to learner")
        self.open()
        assert self._benchmarks is not None
        with watch.computing():
            return self._benchmarks.run(EngineModel(engine, self._benchmarks.tokenizer, watch), name)
