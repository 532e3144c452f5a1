"""The model inside an engine of one rank, which only tests look at, and how far it is from the learner's student."""

from typing import Any

import torch
from torch import nn

from rayqd.learner.engine_check import engine_error
from rayqd.model.student import Student
from rayqd.types import EngineProbe, IntArray


def served_model(engine: Any) -> nn.Module:
    return engine._llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


def trained(student: Student, seed: int) -> Student:
    """The student with other weights in all that is trained, as after many steps."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return student


def probe_of(engine: Any, prompt: IntArray) -> EngineProbe:
    """What the engine writes after `prompt`, with its likeliest tokens: 8 tokens, and 16 of each place."""
    prediction = engine.predict(prompt, 8, 16)
    assert prediction is not None
    return EngineProbe(
        policy_version=0,
        prompt_ids=prompt,
        completion_ids=prediction.token_ids,
        top_ids=prediction.top_ids,
        logprobs=prediction.logprobs,
    )


def error_of(engine: Any, student: Student, prompt: IntArray) -> float:
    """How far the engine's log-probabilities are from the student's."""
    return engine_error(student, probe_of(engine, prompt))
