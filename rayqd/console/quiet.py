"""Libraries that draw their own progress bars and warnings are kept off the user's screen."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def quiet_libraries(*, progress: bool = False) -> Generator[None]:
    """Silence transformers, compressed-tensors and the hub client; `progress` leaves download bars on.

    Some of their bars cannot be turned off, only kept from the terminal.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    transformers_logging.set_verbosity_error()
    if bars:
        transformers_logging.disable_progress_bar()
    if hub_bars and progress:
        enable_progress_bars()
    elif hub_bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings(), _standard_error(shown=progress):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def _standard_error(*, shown: bool) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if shown else contextlib.redirect_stderr(io.StringIO())


def quiet_env_vars() -> dict[str, str]:
    """Return a run's environment variables: no usage statistics, no tokenizer forks, no bars in log files."""
    return {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_NO_USAGE_STATS": "1",
    }


def quiet_ray_reports() -> None:
    """Keep Ray's pages about each process that died in its logs; the run tells of it in a line of its own.

    Ray prints them in the driver even where it was told to print nothing of its workers.
    """
    worker: Any = importlib.import_module("ray._private.worker")  # nothing public says so
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False


def quiet_driver() -> None:
    """Silence the libraries of the process that owns the terminal; to be called before anything large is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name in ("ray", "ray.autoscaler", "torchao", "torch.utils._pytree", "transformers", "datasets", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def output_to(file: Path) -> Generator[None]:
    """Send what this process and its libraries print to `file`; vLLM and torch's C++ talk past Python's streams."""
    streams = (sys.stdout, sys.stderr)
    kept = [os.dup(stream.fileno()) for stream in streams]
    try:
        with file.open("w") as log:
            for stream in streams:
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
            yield
    finally:
        for stream, descriptor in zip(streams, kept, strict=True):
            stream.flush()
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)


@contextlib.contextmanager
def silence_stderr() -> Generator[None]:
    """Drop what C++ writes to this process's stderr: Ray says there what it could not do while it was ended."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
