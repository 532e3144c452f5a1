"""The divergence once more, from its definition, in float64, one token and one id at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest


def _probabilities(logits: np.ndarray, temperature: float) -> list[float]:
    scaled = [float(x) / temperature for x in logits]
    top = max(scaled)
    weights = [math.exp(x - top) for x in scaled]
    total = math.fsum(weights)
    return [w / total for w in weights]


def _kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * math.log(a / b) if b > 0 else math.inf for a, b in zip(p, q, strict=True) if a > 0)


def _jsd_of_a_token(student: np.ndarray, teacher: np.ndarray, beta: float, temperature: float) -> float:
    p, q = _probabilities(student, temperature), _probabilities(teacher, temperature)
    if beta == 0:
        return _kl(q, p)
    if beta == 1:
        return _kl(p, q)
    m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
    return beta * _kl(q, m) + (1 - beta) * _kl(p, m)


@pytest.fixture(scope="session")
def jsd_by_definition() -> Callable[..., np.ndarray]:
    def loop(student: np.ndarray, teacher: np.ndarray, beta: float, temperature: float = 1.0) -> np.ndarray:
        rows = zip(np.asarray(student, np.float64), np.asarray(teacher, np.float64), strict=True)
        return np.array([_jsd_of_a_token(s, t, beta, temperature) for s, t in rows])

    return loop
