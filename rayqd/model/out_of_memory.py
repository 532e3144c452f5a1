"""Errors that say that there was no memory, and what becomes free after one."""

from __future__ import annotations

import gc

import torch

# Of torch's allocator for CPUs, of CUDA's libraries, and of vLLM, none of which has a class of its own.
_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
_WORDS_OF_VLLM = ("no available memory", "gpu memory utilization", "gpu_memory_utilization", "kv cache memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error`, or one that it came of, says that memory did not suffice."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, torch.OutOfMemoryError | MemoryError) or any(
            words in text for words in (*_WORDS, *_WORDS_OF_VLLM)
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def release_memory() -> None:
    """Give back what nobody holds any more; to be called when the error, which holds the stack's tensors, is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
