"""vLLM's class of a model may not tell a layer of the quantization: the student then runs on the values of its codes.

vLLM 0.26's LFM2 builds its convolutions so. Here its Llama is made to do the same with an MLP, or to skip what it
has no place for, and the real engine starts. What it then writes with is what the learner computes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayqd.errors import ModelError
from rayqd.learner.engine_check import engine_error_bound
from rayqd.learner.rollout_weights import collect_rollout_weights
from rayqd.model.out_of_memory import is_out_of_memory
from rayqd.model.student import Student
from rayqd.rollout.engine_makers import vllm_engine_maker
from rayqd.rollout.weights import DenseLoader
from rayqd.types import IntArray
from tests.rollout.served_model import error_of, trained

PROMPT: IntArray = np.arange(3, 35, dtype=np.int32)
PACKS = pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="this CPU has no kernel for codes")


def test_errors_without_memory_are_told_from_others() -> None:
    wrapped = RuntimeError("engine core failed")
    wrapped.__cause__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for error in (
        wrapped,
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        ValueError("Free memory on device (1.2/15.0 GiB) on startup is less than desired GPU memory utilization (0.9)"),
        ValueError("No available memory for the cache blocks."),
    ):
        assert is_out_of_memory(error), error
    for error in (KeyError("layers.0.mlp.gate_up_proj.weight_packed"), AttributeError("no attribute 'weight'")):
        assert not is_out_of_memory(error)


@pytest.fixture
def dropping(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A function that lets vLLM's Llama build its MLPs without the quantization, and maybe load in silence."""
    from vllm.model_executor.models import llama

    def drop(is_silent: bool) -> None:
        build, load = llama.LlamaMLP.__init__, llama.LlamaModel.load_weights

        def without_quantization(self: Any, *args: Any, **keywords: Any) -> None:
            build(self, *args, **{**keywords, "quant_config": None})

        def only_what_fits(self: Any, weights: Iterable[tuple[str, Any]]) -> set[str]:
            return load(self, (w for w in weights if ".mlp." not in w[0] or w[0].endswith(".weight")))

        monkeypatch.setattr(llama.LlamaMLP, "__init__", without_quantization)
        if is_silent:
            monkeypatch.setattr(llama.LlamaModel, "load_weights", only_what_fits)

    return drop


@PACKS
@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.parametrize(
    ("is_silent", "words"), [(False, "KeyError|AttributeError|ValueError"), (True, "it has none of them for 67% ")]
)
def test_a_class_that_drops_the_quantization_runs_dense_and_is_remembered(
    is_silent: bool,
    words: str,
    dropping: Callable[[bool], None],
    tiny_config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a layer, 3 · 128 · 256 weights are the MLP's, and 128 · (128 + 2 · 64) + 128 · 128 attention's: two thirds."""
    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path))
    dropping(is_silent)
    config = tiny_config()
    engine: Any = vllm_engine_maker(config, 0.3)()
    assert isinstance(engine._weight_loader, DenseLoader)
    assert engine.description.startswith("dense bfloat16 weights, as vLLM ")
    assert "does not take this model's codes" in engine.description
    assert any(word in engine.description for word in words.split("|")), engine.description
    student = Student.load(Path(config.model.name), config)
    trained(student, 1)
    assert error_of(engine, student, PROMPT) > 2 * engine_error_bound("bfloat16", 2)  # the source's own weights
    engine.load_weights(collect_rollout_weights(student, config))
    assert error_of(engine, student, PROMPT) < engine_error_bound("bfloat16", 2)

    (kept,) = (tmp_path / "initial").glob("*refused*")
    from rayqd.rollout import engine_makers

    asked: list[bool] = []
    monkeypatch.setattr(engine_makers, "_make_engine", lambda *arguments: asked.append(arguments[2].is_dense))
    vllm_engine_maker(config, 0.3)()
    assert asked == [True]  # without trying the codes once more
    assert kept.read_text() in engine.description


@PACKS
@pytest.mark.slow
@pytest.mark.vllm
def test_a_model_that_vllm_takes_in_no_form_is_told_with_both_reasons(
    tiny_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.models import llama

    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("first line\nno such layer")

    monkeypatch.setenv("RAYQD_CACHE", str(tmp_path))
    monkeypatch.setattr(llama.LlamaMLP, "__init__", fail)
    with pytest.raises(ModelError, match=r"does not take this model's codes \(TypeError: no such layer\), nor its b"):
        vllm_engine_maker(tiny_config(), 0.3)()
    assert not list((tmp_path / "initial").glob("*refused*"))
