"""The INT4 student in vLLM, 0.26 to 0.33, on GPUs and on CPUs.

The engine starts from a checkpoint on disk and takes each version in place, as its weight loader converts it. vLLM's
own layer-by-layer reload prepares the tensors for its kernels: it repacks codes, and on a CPU dense weights too.
Embedding and output head are never reloaded: where they are tied, vLLM's CPU backend packs the head once and would go
on using the first one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rayqd.rollout.engine import Completion, Prediction, SamplingRequest, ignore_progress
from rayqd.rollout.engine_spans import record_engine_spans
from rayqd.rollout.kernels import VLLM_ENVIRONMENT
from rayqd.rollout.open_engine import end_open_engine, set_open_engine
from rayqd.rollout.rank import RANK_CLASS, LikeliestIds
from rayqd.rollout.tuning import Preparation, graph_sizes
from rayqd.rollout.vllm_start import import_model_class, show_llvmlite_to_vllm
from rayqd.rollout.weights import PackedLoader, WeightLoader
from rayqd.spans import span
from rayqd.types import IntArray, WireTensor

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.inputs import TokensInput
    from vllm.logprobs import Logprob

_CPU_KV_CACHE_GIB = 1


def import_vllm() -> None:
    """Import vLLM, which reads its settings from the environment."""
    os.environ.update(VLLM_ENVIRONMENT)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(_CPU_KV_CACHE_GIB))
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # top-k and top-p are seldom asked for
    with nullcontext() if "vllm" in sys.modules else span("import vllm"):
        from vllm import LLM  # noqa: F401  # pyright: ignore[reportUnusedImport]


class VLLMEngine:
    """vLLM in this process; the engine that it had before is ended.

    Raises whatever vLLM raises at a checkpoint that it cannot take, or without room for it.
    """

    def __init__(
        self,
        checkpoint: Path,
        *,
        context_length: int,
        max_concurrent: int,
        gpu_memory_utilization: float,
        dtype: str,
        weight_loader: WeightLoader | None = None,
        max_top_ids: int = 0,
        preparation: Preparation = "compile",
        max_batch: int | None = None,
        kv_bytes: int | None = None,
        description: str = "",
        trusts_code: bool = False,
        num_packed_weights: int = 0,
        tensor_parallel: int = 1,
    ) -> None:
        """Start from `checkpoint`, for at most `context_length` tokens a sequence.

        `max_top_ids`: the most that `generate_ranked` will be asked for.
        `preparation`: see `tuning`; a CPU is always eager.
        `max_batch`: the most sequences at a time for which CUDA graphs are captured; vLLM's choice unless given.
        `kv_bytes`: of the cache of keys and values; `gpu_memory_utilization`, less everything else, unless given.
        `description`: what it computes with, for people.
        `trusts_code`: vLLM may run code that the checkpoint brings.
        `num_packed_weights`: that `checkpoint` holds as codes; raises LayerFormError where the engine has fewer so.
        `tensor_parallel`: GPUs (on a CPU, processes) among which every layer is divided.
        """
        import_vllm()
        from vllm import LLM
        from vllm.platforms import current_platform

        show_llvmlite_to_vllm()
        end_open_engine()
        self._weight_loader = weight_loader or PackedLoader()
        self.context_length = context_length
        self.description = description
        self.on_progress: Callable[[], None] = ignore_progress
        self._num_calls = 0  # of `_finish`
        if tensor_parallel == 1:
            with span("import the model's class"):
                import_model_class(checkpoint)
        with span("vLLM"), record_engine_spans():
            self._llm = LLM(
                model=str(checkpoint),
                runner="generate",  # else a class of somebody's own, called SomethingModel, is taken for an embedding
                dtype=dtype,  # pyright: ignore[reportArgumentType]
                max_model_len=context_length,
                max_num_seqs=max_concurrent,
                gpu_memory_utilization=gpu_memory_utilization,
                enforce_eager=preparation == "eager" or current_platform.is_cpu(),
                disable_log_stats=True,
                trust_remote_code=trusts_code,
                max_logprobs=max(max_top_ids, 1),
                worker_extension_cls=RANK_CLASS,
                tensor_parallel_size=tensor_parallel,
                **cast(Any, {} if current_platform.is_cpu() else _gpu_arguments(preparation, max_batch, kv_bytes)),
            )
        set_open_engine(self._llm)
        self._on_every_rank("check_packed_weights", num_packed_weights)
        with span("warm-up"):
            self._warm_up(max_concurrent)

    def load_weights(self, tensors: Mapping[str, WireTensor]) -> None:
        """Put what the learner published into the engine, and drop its prefix cache."""
        self._on_every_rank("load_published_weights", tensors, self._weight_loader)
        self.reset_prefix_cache()

    def reset_prefix_cache(self) -> None:
        """Forget keys and values, so that what is written next does not depend on what was."""
        self._llm.reset_prefix_cache()

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Write all requests at once; vLLM batches them continuously."""
        params = [self._sampling_params(request) for request in requests]
        return [_completion(output) for output in self.run([request.prompt_ids for request in requests], params)]

    def generate_ranked(self, requests: Sequence[SamplingRequest], k: int) -> list[Completion]:
        """Rank by the model's own distribution, whatever temperature and minimum length the sampling has."""
        params = [self._sampling_params(request, num_logprobs=k) for request in requests]
        outputs = self.run([request.prompt_ids for request in requests], params)
        return [replace(_completion(output), top_ids=_ranked_ids(output, k)) for output in outputs]

    def stream(self, requests: Sequence[SamplingRequest]) -> Iterator[list[tuple[int, IntArray]]]:
        """Do what `LLM.generate` does, and yield each completion when it is there."""
        params = [self._sampling_params(request) for request in requests]
        for finished in self._finish([request.prompt_ids for request in requests], params):
            yield [(index, _token_ids(output)) for index, output in finished]

    def predict(self, prompt_ids: IntArray, num_tokens: int, k: int) -> Prediction | None:
        """Take the logits where vLLM makes them: to ask it for log-probabilities would have it compile for a minute.

        None where this vLLM makes them elsewhere.
        """
        request = SamplingRequest(
            prompt_ids=prompt_ids, seed=0, temperature=0.0, min_new_tokens=num_tokens, max_new_tokens=num_tokens
        )
        self._on_every_rank("watch_likeliest_ids", k)
        try:
            completion = self.generate([request])[0].token_ids
        finally:
            ranks = cast("list[list[LikeliestIds]]", self._on_every_rank("take_likeliest_ids"))
            self.reset_prefix_cache()  # so that what is written later is what would have been
        calls = next((calls for calls in ranks if calls), list[LikeliestIds]())
        if sum(len(call.ids) for call in calls) < len(completion):
            return None
        ids, logprobs = (np.concatenate(part)[: len(completion)] for part in zip(*calls, strict=True))
        return Prediction(token_ids=completion, top_ids=ids, logprobs=logprobs)

    def prompt_logprobs(self, token_ids: IntArray) -> list[float]:
        """Return the log-probability of every token but the first under the present weights, [T - 1], in nats."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.FINAL_ONLY
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, output_kind=kind)
        (output,) = self.run([token_ids], [params])
        assert output.prompt_logprobs is not None
        return [next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:] if entry]

    def _on_every_rank(self, method: str, *args: object) -> list[Any]:
        """Call a method of `Rank` in each of the engine's processes; return what they return, by rank."""
        with self._ending_with_a_rank():
            return self._executor.collective_rpc(method, args=args)

    @property
    def _executor(self) -> Any:
        engine = cast(Any, self._llm.llm_engine)  # what lies behind it has no public type
        return engine.model_executor

    @contextmanager
    def _ending_with_a_rank(self) -> Generator[None]:
        """End this process where an error of the block is that another of the engine's processes has died.

        vLLM cannot replace one; who watches over this process starts it anew.
        """
        try:
            yield
        except Exception:
            if getattr(self._executor, "is_failed", False):
                print("a process of the engine has died: this one ends, too", file=sys.stderr, flush=True)
                os._exit(1)
            raise

    def run(self, prompts: Sequence[IntArray], params: Sequence[SamplingParams]) -> list[RequestOutput]:
        """Return what vLLM makes of each prompt, all of them at once."""
        outputs = dict(pair for finished in self._finish(prompts, params) for pair in finished)
        return [outputs[index] for index in range(len(prompts))]

    def _finish(
        self, prompts: Sequence[IntArray], params: Sequence[SamplingParams]
    ) -> Iterator[list[tuple[int, RequestOutput]]]:
        """Yield outputs with their indices as they are finished; `on_progress` hears of every step of the engine.

        Whatever ends this early, none of its requests stays in the engine, and no later call has one of the same name.
        """
        engine = self._llm.llm_engine
        self._num_calls += 1
        waiting: dict[str, int] = {}
        try:
            for index, (ids, param) in enumerate(zip(prompts, params, strict=True)):
                prompt: TokensInput = {"type": "token", "prompt_token_ids": ids.tolist()}
                name = f"{self._num_calls}-{index}"
                waiting[name] = index
                engine.add_request(name, prompt, param)
            while waiting and engine.has_unfinished_requests():
                with self._ending_with_a_rank():
                    outputs = cast("list[RequestOutput]", engine.step())
                self.on_progress()
                done = [output for output in outputs if output.finished and output.request_id in waiting]
                if finished := [(waiting.pop(output.request_id), output) for output in done]:
                    yield finished
        finally:
            if waiting:
                engine.abort_request([*waiting])

    def _sampling_params(self, request: SamplingRequest, num_logprobs: int | None = None) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        room = self.context_length - len(request.prompt_ids)
        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            min_tokens=min(request.min_new_tokens, room),
            max_tokens=min(request.max_new_tokens, room),
            stop_token_ids=list(request.stop_token_ids),
            stop=list(request.stop),
            include_stop_str_in_output=True,
            logprobs=num_logprobs,
            detokenize=bool(request.stop),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _warm_up(self, max_concurrent: int) -> None:
        """Write a first batch, which compiles and allocates, while the other roles start and not in the first step."""
        prompt = np.arange(1, 17, dtype=np.int32)
        request = SamplingRequest(prompt_ids=prompt, seed=0, temperature=1.0, min_new_tokens=2, max_new_tokens=2)
        self.generate([request] * min(max_concurrent, 8))


def _gpu_arguments(preparation: Preparation, max_batch: int | None, kv_bytes: int | None) -> dict[str, object]:
    """Return what only an engine on a GPU is told, as arguments of vLLM's `LLM`.

    FlashInfer is not tuned: what it has to tune are mixtures of experts and FP4 products, which an INT4 student lacks.
    """
    compilation: dict[str, object] = {}
    if preparation == "graphs":
        # Decode steps alone, which need no graph cut at the attention, and so no compiler.
        compilation |= {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    if preparation != "eager" and max_batch is not None:
        compilation["cudagraph_capture_sizes"] = graph_sizes(max_batch)
    arguments: dict[str, object] = {"enable_flashinfer_autotune": False}
    if compilation:
        arguments["compilation_config"] = compilation
    if kv_bytes is not None:
        arguments["kv_cache_memory_bytes"] = kv_bytes
    return arguments


def _completion(output: RequestOutput) -> Completion:
    return Completion(token_ids=_token_ids(output), is_cut=output.outputs[0].finish_reason == "length")


def _token_ids(output: RequestOutput) -> IntArray:
    return np.asarray(output.outputs[0].token_ids, dtype=np.int32)


def _ranked_ids(output: RequestOutput, k: int) -> IntArray:
    """Return the k likeliest ids at each token, [C, k]; vLLM gives the sampled id too, of whatever rank."""
    positions = cast("Sequence[Mapping[int, Logprob]]", output.outputs[0].logprobs)
    rows = [sorted(logprobs, key=lambda token: (logprobs[token].rank or 0, token))[:k] for logprobs in positions]
    return np.asarray(rows, dtype=np.int32).reshape(-1, k)
