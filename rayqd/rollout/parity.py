"""What the kernels of an engine add to transformers' arithmetic, on the same tokens and the same weights."""

from __future__ import annotations

import importlib.util
import os
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from rayqd.config import Config
from rayqd.console.quiet import output_to
from rayqd.export.verdict import Check
from rayqd.model.load import load_meta_model
from rayqd.model.rounded_head import find_head
from rayqd.model.source import student_directory
from rayqd.rollout.kernels import choose_weight_form
from rayqd.rollout.open_engine import end_open_engine
from rayqd.types import IntArray

_VLLM_KINDS = ("compressed-tensors", "gptq", "awq")
LOG_NAME = "verify.log"
MAX_REASON_CHARACTERS = 300

# What vLLM raises at a checkpoint that it cannot take, or on a machine without room for it.
_REFUSALS = (AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def explain_missing_vllm(kind: str, directory: Path, config: Config) -> str:
    """Return why vLLM cannot be asked about this kind of export on this machine; empty when it can."""
    if kind not in _VLLM_KINDS:
        return f"not asked: vLLM does not load {kind}"
    if kind == "gptq" and config.quant.rule == "asymmetric":
        return "not asked: vLLM does not load gptq with zero points"
    if not _has_vllm():
        return "not asked: vLLM is not installed"
    if config.quant.format == "nvfp4" and not torch.cuda.is_available():
        return "not asked: vLLM has no nvfp4 kernel for CPUs"
    if reason := _explain_missing_head_kernel(config):
        return reason
    if config.quant.format != "int4":
        return ""
    form = choose_weight_form(directory, config, experts_as_codes=torch.cuda.is_available())  # Marlin's are for GPUs
    return f"not asked: {form.reason}" if form.is_dense else ""


def _explain_missing_head_kernel(config: Config) -> str:
    if config.quant.head != "int8" or torch.cuda.is_available():
        return ""
    found = find_head(load_meta_model(student_directory(config)))
    is_tied = found is not None and found.embedding is not None  # and then dense
    return "" if is_tied else "not asked: vLLM reads an int8 head on GPUs alone"


def measure_vllm_change(
    directory: Path, config: Config, sequences: Sequence[IntArray], expected: Sequence[Sequence[float]]
) -> Check:
    """Compare vLLM's log-probabilities of `sequences` with those `expected`, [T - 1] each, in nats.

    vLLM's messages go to verify.log. Where it cannot load the export the check says so, and has neither passed nor
    failed.
    """
    from rayqd.rollout.vllm import VLLMEngine

    log = directory.absolute().parent / LOG_NAME
    with output_to(log), _without_compiler():
        try:
            engine = VLLMEngine(
                directory,
                context_length=max(len(ids) for ids in sequences) + 1,
                max_concurrent=len(sequences),
                gpu_memory_utilization=config.rollout.gpu_memory_utilization or 0.5,
                dtype=config.model.dtype,
                preparation="eager",
                trusts_code=config.model.trust_remote_code,
            )
        except _REFUSALS as error:
            return Check(name="vLLM", text=f"vLLM could not load it: {_shorten(error)}; more in {log}")
        served = [engine.prompt_logprobs(ids) for ids in sequences]
        end_open_engine()
    return measure_logprob_change("vLLM", served, expected)


def measure_logprob_change(
    name: str,
    served: Sequence[Sequence[float]],
    expected: Sequence[Sequence[float]],
    what: str = "its kernels beside transformers'",
) -> Check:
    """Report how far log-probabilities are from those `expected`, on average and at most, in nats; judge nothing."""
    change = np.abs(np.concatenate([np.subtract(a, b) for a, b in zip(served, expected, strict=True)]))
    text = f"{what}: mean |Δ log p| {change.mean():.4f}, at most {change.max():.3f}, on {len(change):,} tokens"
    return Check(name=name, text=text, value=float(change.mean()))


@contextmanager
def _without_compiler() -> Generator[None]:
    """Keep torch.compile out of the engine's processes: it takes a minute, and computes the same."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]


def _shorten(error: Exception) -> str:
    words = f"{type(error).__name__}: {error}".split()
    return textwrap.shorten(" ".join(words), MAX_REASON_CHARACTERS, placeholder=" ...")


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None
