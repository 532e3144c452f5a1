"""The model inside an engine of one rank, which only tests look at."""

from typing import Any

from torch import nn


def served_model(engine: Any) -> nn.Module:
    return engine._llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()
