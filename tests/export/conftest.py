"""What several tests of exports need."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from rayqd.config import Config


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is not asked, whether it is installed or not."""
    monkeypatch.setattr("rayqd.rollout.parity._has_vllm", lambda: False)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Path, Config]]:
    """A function that leaves a run with one checkpoint."""
    from tests.export.trained_run import make_trained_run

    return partial(make_trained_run, tmp_path)
