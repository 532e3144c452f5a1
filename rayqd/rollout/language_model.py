"""An engine that answers lm-evaluation-harness: its own `vllm` model, on an engine that is there.

Log-likelihoods are log-probabilities of prompts, answers are written greedily, or as the task says. An engine's own
sampling settings are part of each request to write a completion, and so none of these; its cache of prefixes is dropped
afterwards, so that what it writes next is what it would have written.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# lm-eval is without types.

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import torch

from rayqd.evals.answers import AnswerCount
from rayqd.evals.language_model import Asking
from rayqd.rollout.support import installed_vllm
from rayqd.stall import NoWatch, Watch

if TYPE_CHECKING:
    from rayqd.rollout.vllm import VLLMEngine


class EngineModel:
    """An engine with the weights that it has, and the model's tokenizer."""

    def __init__(self, engine: VLLMEngine, tokenizer: Any, watch: Watch | None = None) -> None:
        """`watch` watches over the engine's work, of whose steps the engine tells it; the host's is who runs tasks'."""
        self._engine, self._tokenizer, self._watch = engine, tokenizer, watch or NoWatch()

    @contextmanager
    def answering(self, asking: Asking, answers: AnswerCount) -> Generator[Any]:
        """Yield lm-eval's model; see `LanguageModel`."""
        try:
            yield _make(self._engine, self._tokenizer, asking, answers, self._watch)
        finally:
            self._engine.reset_prefix_cache()


def _import_vllm_model() -> Any:
    """Import lm-eval's class, which asks for the version of a distribution `vllm`; that for CPUs has another name."""
    known = installed_vllm()
    version = importlib.metadata.version

    def find_version(name: str) -> str:
        return next(iter(known.values())) if name == "vllm" and known else version(name)

    with patch("importlib.metadata.version", find_version):
        return importlib.import_module("lm_eval.models.vllm_causallms").VLLM


def _args(request: Any) -> Any:
    return request.args


def _uncompiled_on_cpu() -> AbstractContextManager[object]:
    """Let vLLM count ranks as it is written: inductor takes a minute of a CPU for that one line, the first time."""
    return nullcontext() if torch.cuda.is_available() else torch.compiler.set_stance("force_eager")


def _make(engine: VLLMEngine, tokenizer: Any, asking: Asking, answers: AnswerCount, watch: Watch) -> Any:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import configure_pad_token
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    base: Any = _import_vllm_model()  # its attributes have no types
    hf: Any = HFLM

    class EngineLM(base):
        """lm-eval's, but for what makes an engine, and for `enable_thinking`, which its own loses on the way."""

        apply_chat_template = hf.apply_chat_template

        def __init__(self) -> None:
            super(base, self).__init__()
            self.tokenizer = configure_pad_token(tokenizer)
            self.batch_size = "auto"  # all requests at once, as many of which run as fit
            self.add_bos_token = None
            self.chat_template_args = dict(asking.chat_variables)
            self.enable_thinking = None
            self.think_end_token = asking.think_end
            self.custom_prefix_token_id = None
            self.truncation_side = "left"
            self.data_parallel_size = self.tensor_parallel_size = 1
            self.lora_request = None
            self._max_length = engine.context_length
            self._max_gen_toks = 256  # where a task says nothing, as in lm-eval

        def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
            if not generate or sampling_params is None:
                sampling_params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
            params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(requests)
            for each in params:
                each.output_kind = RequestOutputKind.FINAL_ONLY
            with _uncompiled_on_cpu(), watch.working():
                outputs = engine.run([np.asarray(ids, dtype=np.int32) for ids in requests], params)
            if generate:
                answers.num_all += len(outputs)
                answers.num_cut += sum(output.outputs[0].finish_reason == "length" for output in outputs)
            return outputs

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False) -> Any:
            lengths = [len(context) + len(continuation) for _, context, continuation in requests]
            answers.num_shortened += sum(length > self.max_length - 1 for length in lengths)
            return super()._loglikelihood_tokens(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            answers.window = self.max_length - 2  # beside what comes before the first token and after the last one
            answers.num_windowed += sum(len(self.tok_encode(text)) > answers.window for (text,) in map(_args, requests))
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        @staticmethod
        def modify_gen_kwargs(gen_kwargs: Any, eos: Any = None, default_max_gen_toks: int = 256) -> Any:
            """Answer as lm-eval's model of transformers: greedily where a task says nothing, without special tokens.

            Left to itself, vLLM would sample at temperature 1.
            """
            settings, *rest = base.modify_gen_kwargs(gen_kwargs, eos=eos, default_max_gen_toks=default_max_gen_toks)
            greedy = {} if gen_kwargs.get("do_sample") else {"temperature": 0.0}
            return {**greedy, **settings, "skip_special_tokens": True}, *rest

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Any:
            for request in requests:
                context, settings = request.args
                *_, most = self.modify_gen_kwargs(dict(settings), eos="", default_max_gen_toks=self.max_gen_toks)
                if most >= self.max_length:
                    raise ValueError(f"its answers may have {most} tokens, and the engine takes {self.max_length}")
                answers.num_shortened += len(self.tok_encode(context)) + most > self.max_length
            return super().generate_until(requests, disable_tqdm=True)

    return EngineLM()
