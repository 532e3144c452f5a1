"""What an engine prepares follows from the work that its run has for it."""

from typing import Any

import pytest

from rayqd.config import Config
from rayqd.rollout.tuning import choose_preparation, count_decode_steps, graph_sizes, most_sequences
from rayqd.rollout.vllm import _gpu_arguments


def config(steps: int = 24, batch: int = 8, lmbda: float = 0.5, **rollout: Any) -> Config:
    sampled = {"max_new_tokens": 64, "max_concurrent": 16, **rollout}
    return Config.model_validate(
        {"learner": {"steps": steps, "batch_size": batch}, "distill": {"lmbda": lmbda}, "rollout": sampled}
    )


def test_decode_steps_are_those_of_the_longest_completions_in_as_many_rounds_as_a_worker_needs() -> None:
    assert count_decode_steps(config()) == 24 * 64  # half of 8 sequences at once
    assert count_decode_steps(config(batch=128)) == 24 * 64 * 4  # 64 sequences, 16 at a time
    assert count_decode_steps(config(batch=128, num_workers=4)) == 24 * 64


def test_steps_without_the_student_decode_nothing() -> None:
    late = config().model_copy(update={"distill": config().distill.model_copy(update={"on_policy_after": 0.75})})
    assert count_decode_steps(late) == 6 * 64


@pytest.mark.parametrize(("steps", "compiles"), [(199, False), (200, True)])
def test_a_learner_compiles_what_its_steps_earn_back(steps: int, compiles: bool) -> None:
    assert config(steps).compiles_layers == compiles
    for given in (True, False):
        told = config(steps).model_copy(update={"model": config().model.model_copy(update={"compile": given})})
        assert told.compiles_layers == given


def test_no_more_sequences_come_at_a_time_than_a_worker_s_share_of_a_step() -> None:
    assert most_sequences(config()) == 4
    assert most_sequences(config(lmbda=0.3)) == 3  # 2.4 a step, so some steps have three
    assert most_sequences(config(batch=128)) == 16
    assert most_sequences(config(batch=9, lmbda=1.0, num_workers=2)) == 5


@pytest.mark.parametrize(("steps", "expected"), [(1, "eager"), (24, "graphs"), (100_000, "compile")])
def test_longer_runs_prepare_more(steps: int, expected: str) -> None:
    assert choose_preparation(config(steps)) == expected
    assert choose_preparation(config(steps, engine="eager")) == "eager"


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (3, [1, 2, 3]), (4, [1, 2, 4]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_every_batch_has_a_graph_less_than_8_larger(most: int, sizes: list[int]) -> None:
    assert graph_sizes(most) == sizes
    for batch in range(1, most + 1):
        assert 0 <= min(size for size in sizes if size >= batch) - batch < 8


def test_vllm_takes_what_it_is_told() -> None:
    """As its own configuration reads it; the installed version's, on any machine."""
    compilation = pytest.importorskip("vllm.config.compilation")
    fields = pytest.importorskip("vllm.engine.arg_utils").EngineArgs.__dataclass_fields__
    arguments: dict[str, Any] = _gpu_arguments("graphs", 4, 2**30)
    assert set(arguments) <= set(fields)
    read = compilation.CompilationConfig(**arguments["compilation_config"])
    assert read.mode == compilation.CompilationMode.NONE
    assert read.cudagraph_mode == compilation.CUDAGraphMode.FULL_DECODE_ONLY
    assert not read.cudagraph_mode.requires_piecewise_compilation()  # which would need the compiler
    assert read.cudagraph_capture_sizes == [1, 2, 4]
    assert "compilation_config" not in _gpu_arguments("eager", 4, None)
