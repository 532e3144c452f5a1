"""Libraries that draw their own progress bars and warnings are kept off the user's screen."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries(*, progress: bool = False) -> Iterator[None]:
    """Silence transformers and the hub client; `progress` leaves download bars on."""
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def quiet_environment() -> dict[str, str]:
    """Environment of every process of a run: no usage statistics, no tokenizer forks, no bars in log files."""
    return {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_NO_USAGE_STATS": "1",
    }


def quiet_driver() -> None:
    """For the process that owns the terminal; to be called before anything large is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("ray", "torchao", "torch.utils._pytree", "transformers", "datasets", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
