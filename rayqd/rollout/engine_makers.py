"""The engines of a run; the student's with packed codes where vLLM takes them, else with the values they stand for.

Whether there are kernels is asked before (`kernels`). Whether vLLM's class of the model takes codes in every layer only
the class knows: one that does not tell a layer of the quantization fails while it loads (LFM2's convolutions in 0.26),
or leaves that layer as it was. In either case the engine starts again with dense weights, and that is remembered.
"""

from __future__ import annotations

import importlib
import math
import os
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rayqd.config import Config
from rayqd.errors import ConfigError, ModelError, RayqdError
from rayqd.files import write_text
from rayqd.model.import_transformers import import_transformers
from rayqd.rollout.engine import Engine
from rayqd.rollout.open_engine import end_open_engine
from rayqd.rollout.support import explain_unusable_vllm, installed_vllm
from rayqd.rollout.worker import MakeEngine, num_top_ids
from rayqd.spans import span

if TYPE_CHECKING:
    from rayqd.model.gpu_memory import GpuShare
    from rayqd.rollout.kernels import WeightForm
    from rayqd.rollout.vllm import VLLMEngine

_MAX_REASON_CHARACTERS = 200
_BENCHMARK_TOKENS = 4096


@cache
def import_engine() -> None:
    """Import what `vllm_engine_maker` needs, before there is a model to load."""
    if explain_unusable_vllm():  # which it raises
        return
    with span("import transformers"):
        import_transformers()
        from rayqd.rollout.vllm import import_vllm

    import_vllm()


def vllm_engine_maker(config: Config, gpu_share: float) -> MakeEngine:
    """Return a function that makes the student's engine, in the process that calls it.

    It raises ModelError where vLLM loads the model neither packed nor dense.
    """

    def make() -> Engine:
        _check_engine(config)
        import_engine()
        from rayqd.model.source import student_directory
        from rayqd.rollout.kernels import WeightForm, choose_weight_form

        directory = student_directory(config)
        refusal = _refusal_file(directory, config)
        with span("find the 4-bit kernel"):
            form = choose_weight_form(directory, config)
            if not form.is_dense and refusal.exists():
                form = WeightForm(reason=refusal.read_text(encoding="utf-8"), dtype=config.model.dtype)
        if form.is_dense:
            return _make_engine(directory, config, form, gpu_share)
        engine, reason = _try_packed(directory, config, form, gpu_share)
        if engine is None:
            _release_engine()
            engine = _make_dense(directory, config, reason, gpu_share)
            refusal.parent.mkdir(parents=True, exist_ok=True)
            write_text(refusal, reason)
        return engine

    return make


def checkpoint_engine_maker(name: str, revision: str | None, config: Config, gpu_share: float) -> MakeEngine:
    """Return a function that makes an engine of a model as it lies on disk, 16-bit or an export.

    Prompt and completion together have at most `data.max_length` tokens.
    """

    def make() -> Engine:
        from rayqd.model.load import context_length
        from rayqd.model.source import local_directory
        from rayqd.rollout.vllm import VLLMEngine

        _check_engine(config)
        directory = local_directory(name, revision, trusts_code=config.model.trust_remote_code)
        return VLLMEngine(
            directory,
            context_length=min(context_length(directory), config.data.max_length),
            max_concurrent=config.rollout.max_concurrent,
            gpu_memory_utilization=_utilization(config, gpu_share),
            dtype=config.model.dtype,
            trusts_code=config.model.trust_remote_code,
            tensor_parallel=config.rollout.tensor_parallel,
        )

    return make


@contextmanager
def benchmark_engine(directory: Path, config: Config) -> Generator[VLLMEngine]:
    """Yield an engine of the model in `directory` in this process, for `eval.tasks`; its memory is free afterwards."""
    import gc

    from rayqd.model.load import context_length
    from rayqd.rollout.vllm import VLLMEngine

    _check_engine(config)
    tokens = min(context_length(directory), benchmark_tokens(config))
    _reserve_cpu_cache(directory, config, tokens)
    engine: VLLMEngine | None = VLLMEngine(
        directory,
        context_length=tokens,
        max_concurrent=config.rollout.max_concurrent,
        gpu_memory_utilization=_free_share(),
        dtype=config.model.dtype,
        preparation="graphs",
        max_batch=config.rollout.max_concurrent,
        trusts_code=config.model.trust_remote_code,
        tensor_parallel=config.rollout.tensor_parallel,
    )
    try:
        yield engine
    finally:
        engine = None
        end_open_engine()
        _release_engine()
        gc.collect()


def benchmark_tokens(config: Config) -> int:
    """Return the tokens that an engine takes of a benchmark's question and answer together; longer ones are told."""
    return _BENCHMARK_TOKENS + (config.eval.task_max_new_tokens or 0)


def _tokens_of_tasks(directory: Path, config: Config, share: GpuShare | None) -> int:
    """Return how many tokens a benchmark may take of an engine for rollouts; 0 where none are run there.

    As many as `benchmark_tokens`, where the cache that the rollouts need has room for one such sequence.
    """
    from rayqd.model.load import load_meta_model, torch_dtype
    from rayqd.rollout.gpu_share import total_gpu_bytes
    from rayqd.rollout.kv_cache import kv_bytes_per_token, kv_cache_bytes

    if config.eval.where != "rollout" or not config.eval.steps_between_tasks:
        return 0
    value = torch_dtype(config.model.dtype).itemsize
    per_token = kv_bytes_per_token(load_meta_model(directory).config, value, config.rollout.tensor_parallel)
    is_on_cpu = total_gpu_bytes() is None
    room = share.kv_bytes if share else int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1")) * 2**30 if is_on_cpu else 0
    if per_token is None or not room:
        return 0
    fitting = room * benchmark_tokens(config) // kv_cache_bytes(per_token, benchmark_tokens(config), 1)
    return min(benchmark_tokens(config), fitting)


def _free_share() -> float:
    """Return the share of its GPU that an engine may take beside what this process has on it."""
    import torch

    if not torch.cuda.is_available():
        return 0.9
    free, total = torch.cuda.mem_get_info()
    return 0.9 * free / total


def _reserve_cpu_cache(directory: Path, config: Config, num_tokens: int) -> None:
    """Let a CPU's cache have room for one sequence at least, where the user has not said how large it is."""
    from rayqd.model.load import load_meta_model, torch_dtype
    from rayqd.rollout.kv_cache import kv_bytes_per_token, kv_cache_bytes

    per_token = kv_bytes_per_token(load_meta_model(directory).config, torch_dtype(config.model.dtype).itemsize)
    if per_token is not None:
        gib = math.ceil(kv_cache_bytes(per_token, num_tokens, 1) / 2**30)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(gib))


def _check_engine(config: Config) -> None:
    """Raise ConfigError where this machine's vLLM or GPU cannot serve the run; the driver's may be others."""
    from rayqd.model.arithmetic import explain_missing_bfloat16

    if reason := explain_unusable_vllm() or explain_missing_bfloat16(config.model.dtype):
        raise ConfigError(reason)


def _utilization(config: Config, gpu_share: float) -> float:
    """Return the share of its GPU that an engine takes which plans no further."""
    return config.rollout.gpu_memory_utilization or 0.9 * min(gpu_share, 1.0)


def _make_engine(directory: Path, config: Config, form: WeightForm, gpu_share: float) -> Engine:
    from rayqd.model.load import context_length
    from rayqd.rollout.gpu_share import plan_gpu_share
    from rayqd.rollout.kernels import count_packed_weights
    from rayqd.rollout.tuning import choose_preparation, most_sequences
    from rayqd.rollout.vllm import VLLMEngine
    from rayqd.rollout.weights import choose_weight_loader

    weight_loader = choose_weight_loader(config, form)
    longest = context_length(directory)
    num_tokens = min(longest, config.data.max_length + config.rollout.max_new_tokens)
    share = plan_gpu_share(directory, config, gpu_share, num_tokens, is_dense=form.is_dense)
    with span("prepare checkpoint"):
        checkpoint = weight_loader.prepare_checkpoint(directory, config)
    return VLLMEngine(
        checkpoint,
        context_length=min(longest, max(num_tokens, _tokens_of_tasks(directory, config, share))),
        max_concurrent=config.rollout.max_concurrent,
        preparation=choose_preparation(config),
        max_batch=most_sequences(config),
        gpu_memory_utilization=share.utilization if share else _utilization(config, gpu_share),
        kv_bytes=share.kv_bytes if share else None,
        dtype=config.model.dtype,
        weight_loader=weight_loader,
        max_top_ids=num_top_ids(config),
        description=str(form),
        trusts_code=config.model.trust_remote_code,
        tensor_parallel=config.rollout.tensor_parallel,
        num_packed_weights=0 if form.is_dense else count_packed_weights(directory, config),
    )


def _try_packed(directory: Path, config: Config, form: WeightForm, gpu_share: float) -> tuple[Engine | None, str]:
    """Return the engine, or None and why vLLM does not take the codes; raises where memory is what is missing.

    A function of its own, so that what the error's traceback holds is gone when it returns.
    """
    try:
        return _make_engine(directory, config, form, gpu_share), ""
    except RayqdError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        (version,) = installed_vllm().values()
        return None, f"vLLM {version} does not take this model's codes ({_last_words(error)})"


def _make_dense(directory: Path, config: Config, reason: str, gpu_share: float) -> Engine:
    """Make an engine of a model whose codes vLLM has just refused for `reason`."""
    from rayqd.rollout.kernels import WeightForm

    try:
        return _make_engine(directory, config, WeightForm(reason=reason, dtype=config.model.dtype), gpu_share)
    except RayqdError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise
        raise ModelError(
            f"{reason}, nor its {config.model.dtype} weights ({_last_words(error)}): distil off-policy "
            "(distill.lmbda = 0), which needs no engine, or use another vLLM of 0.26 to 0.33"
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    from rayqd.model.out_of_memory import is_out_of_memory

    return is_out_of_memory(error)


def _release_engine() -> None:
    """Let go of what a vLLM that failed to start has left in this process: its process groups, its memory."""
    importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()


def _refusal_file(directory: Path, config: Config) -> Path:
    """Return where a machine keeps why the installed vLLM does not take the codes of this model."""
    from rayqd.export.initial_checkpoint import initial_directory

    (version,) = installed_vllm().values()
    return initial_directory(directory, config, f"refused-by-vllm-{version}.txt")


def _last_words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
    return textwrap.shorten(words, _MAX_REASON_CHARACTERS, placeholder=" ...")
