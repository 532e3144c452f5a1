"""What `model.dtype = "auto"` means for a run: decided once, before anything is written, and kept from then on."""

from __future__ import annotations

import tomllib
from pathlib import Path

from rayqd.config import Config
from rayqd.config.resolved import with_values
from rayqd.errors import ConfigError
from rayqd.model.arithmetic import choose_dtype, explain_missing_bfloat16, explain_useless_machine
from rayqd.rollout.support import explain_unusable_vllm
from rayqd.runs.paths import CONFIG
from rayqd.runs.storage.stored_run import StoredRun

AUTO = "auto"
_KEY = "model.dtype"


def is_elsewhere(config: Config) -> bool:
    """Return whether the run computes on a cluster, of whose machines this one may be none."""
    return config.ray.cluster_address is not None


def with_concrete_dtype(config: Config, run_dir: Path | None = None) -> Config:
    """Return `config` with a dtype in place of "auto".

    That of an earlier start, which is in the config.toml of `run_dir` or in the run's storage; else what this machine
    computes fastest; on a cluster bfloat16, as its nodes' GPUs have it and this machine may be none of them.
    """
    if config.model.dtype != AUTO:
        return config
    return with_values(config, {_KEY: _find_earlier(config, run_dir) or pick_dtype(config)[0]})


def pick_dtype(config: Config) -> tuple[str, str]:
    """Return what "auto" means for a run that has not begun, and why."""
    return ("bfloat16", "the GPUs of a cluster have it") if is_elsewhere(config) else choose_dtype()


def describe_dtype(asked: Config, config: Config) -> str:
    """Format `model.dtype auto: bfloat16, as this CPU has it (amx_bf16)`; `asked` is `config` as it was given.

    Of another than auto only that this machine has no instructions for it; else the text is empty.
    """
    picked, why = pick_dtype(config)
    if asked.model.dtype != AUTO:
        slow = picked == "float32" and config.model.dtype != picked
        return f"model.dtype {config.model.dtype}: {why}; --model.dtype {AUTO} takes {picked}" if slow else ""
    why = why if picked == config.model.dtype else "this run began with it"
    return f"model.dtype {AUTO}: {config.model.dtype}, as {why}"


def check_machine(config: Config, *, runs_vllm: bool) -> None:
    """Refuse, before a model is loaded, what cannot work here: CPU, driver, GPU for the dtype, and vLLM's version.

    Raises ConfigError. A cluster's machines are not this one; its workers look for themselves.
    """
    if is_elsewhere(config):
        return
    reason = explain_useless_machine() or explain_missing_bfloat16(config.model.dtype)
    if reason := reason or (explain_unusable_vllm() if runs_vllm else ""):
        raise ConfigError(reason)


def _find_earlier(config: Config, run_dir: Path | None) -> str:
    """Return the dtype of the run that goes on; empty where none does, or where it cannot be read."""
    file = (run_dir or config.run_dir) / CONFIG
    if file.is_file():
        return _read_dtype(file.read_bytes())
    stored = StoredRun.of(config)
    content = stored.folder.read(CONFIG) if stored else None
    return _read_dtype(content) if content else ""


def _read_dtype(content: bytes) -> str:
    try:
        dtype = tomllib.loads(content.decode())["model"]["dtype"]
    except (KeyError, TypeError, ValueError):
        return ""  # RunDirectory says what is wrong with it
    return dtype if isinstance(dtype, str) and dtype != AUTO else ""
