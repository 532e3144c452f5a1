"""What `rayqd bench run` is to measure, by its command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rayqd.bench.head_to_head.peers import BY_NAME, PEERS
from rayqd.bench.head_to_head.workload import ARMS, Arm
from rayqd.bench.shapes import SHAPES
from rayqd.config import Config
from rayqd.config.arguments import Arguments, read_arguments
from rayqd.config.load import config_of
from rayqd.driver.dtype import with_concrete_dtype
from rayqd.errors import ConfigError

# What a run without a file of settings begins with; flags change it.
_SETTINGS = (
    "--model.name",
    "smollm2-135m",
    "--model.dtype",
    "auto",
    "--quant.init",
    "rtn",
    "--data.source",
    "quickstart",
)
_ON_GPU = ("--learner.microbatch_tokens", "8192")
_GROUP_SIZES = (128, 64, 32)  # of which the first is taken that divides the widths of the model
# Settings that the options say, or the requests.
_TAKEN = {
    "learner.steps": "--steps",
    "learner.batch_size": "--sequences",
    "rollout.max_new_tokens": "--sequences",
    "rollout.min_new_tokens": "--sequences",
    "distill.lmbda": "--arms",
    "distill.on_policy_after": "--arms",
    "data.sources": "",
    "eval.source": "",
    "storage": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured, by the command line."""

    config: Config
    shape: str | None  # of random weights; None: the model that model.name says
    arms: tuple[Arm, ...]
    peers: tuple[str, ...]
    num_sequences: int  # a step
    new_tokens: int  # of each
    steps: int
    seconds: float  # of steps, after which a contender ends early
    limit_seconds: float  # of a contender's process
    beside: tuple[Path, ...]  # JSON of earlier calls, whose rows are shown, and not measured once more
    has_own: bool  # rayqd is measured, too
    runs: Path | None  # where rayqd's runs stay; None: nowhere
    logs: Path | None  # of what each contender prints; None: a new directory
    json_file: Path | None


def plan_run(arguments: Arguments, options: Mapping[str, str]) -> Plan:
    """Return what the command line asks for. Raises ConfigError at what cannot be."""
    for flag in arguments.flags:
        if flag.key in _TAKEN:
            hint = f"use {_TAKEN[flag.key]}" if _TAKEN[flag.key] else "leave it out"
            raise ConfigError(f"flag --{flag.key}: rayqd bench run makes its own; {hint}")
    on_gpu = torch.cuda.is_available()
    named = bool(arguments.files) or any(flag.key == "model.name" for flag in arguments.flags)
    shape = options.get("shape", "qwen3-4b" if on_gpu and not named else None)
    if shape is not None and shape not in SHAPES:
        raise ConfigError(f"flag --shape={shape}: must be one of {', '.join(SHAPES)}")
    num_sequences, new_tokens = _sequences(options.get("sequences", "64x512" if on_gpu else "8x128"))
    json_file = Path(options["json"]) if "json" in options else None
    if json_file and json_file.is_dir():
        raise ConfigError(f"flag --json={json_file}: is a directory; name a file")
    logs = options.get("logs", f"{json_file}.logs" if json_file else None)
    return Plan(
        config=with_concrete_dtype(_config(arguments, num_sequences, shape or "smollm2-135m", on_gpu=on_gpu)),
        shape=shape,
        arms=_chosen_arms(options.get("arms", ",".join(ARMS))),
        peers=_chosen_peers(options.get("peers", ",".join(BY_NAME))),
        num_sequences=num_sequences,
        new_tokens=new_tokens,
        steps=_at_least(2, "steps", options.get("steps", "6" if on_gpu else "4")),
        seconds=_at_least(1, "seconds", options.get("seconds", "90")),
        limit_seconds=_at_least(1, "limit", options.get("limit", "1800")),
        beside=tuple(_existing(file) for file in options["beside"].split(",")) if "beside" in options else (),
        has_own="peers-alone" not in options,
        runs=next((Path(flag.text).absolute() for flag in arguments.flags if flag.key == "runs_dir"), None),
        logs=Path(logs).absolute() if logs else None,
        json_file=json_file,
    )


def _config(arguments: Arguments, num_sequences: int, shape: str, *, on_gpu: bool) -> Config:
    """Return the settings: without a file those of the study on a small model, with the flags given."""
    if arguments.files:
        return config_of(arguments)
    widths = (SHAPES[shape].hidden_size, SHAPES[shape].intermediate_size)
    group_size = next(size for size in _GROUP_SIZES if all(width % size == 0 for width in widths))
    words = [*_SETTINGS, *(_ON_GPU if on_gpu else ())]
    words += ["--rollout.max_concurrent", str(num_sequences), "--quant.group_size", str(group_size)]
    return config_of(replace(arguments, flags=(*read_arguments(words).flags, *arguments.flags)))


def _existing(file: str) -> Path:
    if not Path(file).is_file():
        raise ConfigError(f"flag --beside={file}: is not what --json of rayqd bench run wrote: no such file")
    return Path(file)


def _chosen_arms(text: str) -> tuple[Arm, ...]:
    if unknown := [arm for arm in text.split(",") if arm not in ARMS]:
        raise ConfigError(f"flag --arms={text}: {unknown[0] or 'nothing'} is none of {', '.join(ARMS)}")
    return tuple(arm_of(arm) for arm in ARMS if arm in text.split(","))


def _chosen_peers(text: str) -> tuple[str, ...]:
    names = [] if text == "none" else text.split(",")
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ConfigError(f"flag --peers={text}: {unknown[0] or 'nothing'} is none of {', '.join(BY_NAME)}, none")
    return tuple(peer.name for peer in PEERS if peer.name in names)


def _sequences(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 8:
        raise ConfigError(f"flag --sequences={text}: must be SEQUENCESxNEW_TOKENS, such as 8x128, of 8 tokens or more")
    return int(match[1]), int(match[2])


def _at_least(least: int, name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"flag --{name}={text}: must be a whole number from {least}")
    return int(text)


def arm_of(text: str) -> Arm:
    """Return the arm of that name."""
    return next(arm for arm in ARMS if arm == text)
