"""What rayqd does in each of an engine's processes: vLLM mixes `Rank` into its worker and calls its methods by name.

An engine on one GPU has one rank, in the process that asks. With `rollout.tensor_parallel` each GPU has a process of
its own with its part of every layer; weights reach them through vLLM's own queue of shared memory, and what vLLM's
weight loaders do with a checkpoint's tensors they do with these: each rank takes its part.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayqd.rollout.kernels import request_amx
from rayqd.rollout.layer_form import check_packed
from rayqd.rollout.reload import keep_addresses
from rayqd.rollout.weights import WeightLoader
from rayqd.types import IntArray, WireTensor

RANK_CLASS = f"{__name__}.Rank"

_GRACE_SECONDS = 5.0  # for vLLM to end its processes itself


class LikeliestIds(NamedTuple):
    """The likeliest next tokens at some positions."""

    ids: IntArray  # [T, k]
    logprobs: NDArray[np.float32]  # [T, k] nats, over the whole vocabulary


class _ModelRunner(Protocol):
    """The part of vLLM that holds the model."""

    device: torch.device

    def get_model(self) -> torch.nn.Module: ...
    def reload_weights(self, *, weights_iterator: Iterator[tuple[str, Tensor]]) -> None: ...


class Rank:
    """One of an engine's processes; the names of its methods are none of vLLM's."""

    model_runner: _ModelRunner
    vllm_config: Any

    def check_packed_weights(self, num_packed: int) -> None:
        """Raise LayerFormError where the model has fewer than `num_packed` weights as codes."""
        check_packed(self.model_runner.get_model(), num_packed)

    def load_published_weights(self, tensors: Mapping[str, WireTensor], loader: WeightLoader) -> None:
        """Put what the learner published in the place of what was there."""
        # Each reload warns of every layer that it was given nothing for, and that is all that are not quantized.
        logging.getLogger("vllm.model_executor.model_loader.reload").setLevel(logging.ERROR)
        runner = self.model_runner
        model = runner.get_model()
        if runner.device.type == "cpu":
            forget_kernels_of_experts(model)
        with keep_addresses(model) if has_graphs(self.vllm_config) else nullcontext():
            runner.reload_weights(weights_iterator=loader.convert(tensors, runner.device))

    def watch_likeliest_ids(self, k: int) -> None:
        """Keep the k likeliest ids of every distribution that the model computes from now on."""
        model = self.model_runner.get_model()
        compute_logits = cast("Callable[..., Tensor | None]", model.compute_logits)
        kept: list[LikeliestIds] = []

        def keep_likeliest(*args: object, **keywords: object) -> Tensor | None:
            logits = compute_logits(*args, **keywords)
            if logits is not None:  # of several ranks the first one alone may have them
                logprobs, ids = logits.float().log_softmax(-1).topk(k)
                kept.append(LikeliestIds(ids.cpu().numpy().astype(np.int32), logprobs.cpu().numpy()))
            return logits

        model.__dict__["compute_logits"] = keep_likeliest
        self.__dict__["rayqd_likeliest_ids"] = kept

    def take_likeliest_ids(self) -> list[LikeliestIds]:
        """Return what was kept, one call of the model after the other, and keep no more."""
        del self.model_runner.get_model().__dict__["compute_logits"]
        return self.__dict__.pop("rayqd_likeliest_ids")


def has_graphs(vllm_config: Any) -> bool:
    """Return whether CUDA graphs, which know tensors by their addresses, run the model."""
    mode = vllm_config.compilation_config.cudagraph_mode
    return mode is not None and mode.name != "NONE"


def forget_kernels_of_experts(model: torch.nn.Module) -> None:
    """Let a reload pack experts for the CPU's kernel again: vLLM 0.32 does so only while there is none yet.

    With one there, the kernel would read what was just loaded, row by row, as packed.
    """
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            cast(Any, method).moe_kernel = None


def _end_after_parent() -> None:
    """End this process once the one that started it is gone.

    vLLM itself asks the thread that computes to end, and that may wait for another rank, which has ended, for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        time.sleep(_GRACE_SECONDS)
        os._exit(1)


# vLLM imports this file in each of its processes, before it calls a kernel.
request_amx()
threading.Thread(target=_end_after_parent, daemon=True, name="rayqd-end-after-parent").start()
