"""How completions are sampled: `rollout.*`, with what the model's generation_config.json says where "model" stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rayqd.config import Config
from rayqd.config.resolved import with_values
from rayqd.config.sections import RolloutConfig
from rayqd.data.chat_settings import chat_settings
from rayqd.data.stops import end_token_ids
from rayqd.model.source import student_directory, teacher_directories
from rayqd.rollout.engine import SamplingRequest
from rayqd.types import IntArray

MODEL = "model"
_NEUTRAL: dict[str, float] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRules:
    """How the student writes: what settings and model say of it together."""

    settings: RolloutConfig  # without "model", see `with_model_sampling`
    stop_token_ids: tuple[int, ...] = ()  # of which each ends a completion
    vocab_size: int | None = None  # ids that student and teacher know; of others neither has a loss


def sampling_rules(config: Config) -> SamplingRules:
    """Return the rules of a run, by the small files of its models."""
    from rayqd.model.load import common_vocab_size, load_tokenizer

    directory = student_directory(config)
    return SamplingRules(
        settings=with_model_sampling(config, directory).rollout,
        stop_token_ids=end_token_ids(load_tokenizer(directory), directory, chat_settings(config.data)),
        vocab_size=common_vocab_size(directory, *teacher_directories(config)),
    )


def with_model_sampling(config: Config, directory: Path) -> Config:
    """Return `config` with the generation settings of the model in `directory` in place of each "model".

    What its generation_config.json does not say changes nothing.
    """
    asked = [name for name in _NEUTRAL if getattr(config.rollout, name) == MODEL]
    if not asked:
        return config
    own = _read_generation_config(directory)
    return with_values(config, {f"rollout.{name}": own.get(name, _NEUTRAL[name]) for name in asked})


def sampling_request(
    settings: RolloutConfig,
    prompt_ids: IntArray,
    *,
    seed: int,
    stop_token_ids: tuple[int, ...],
    most: int | None = None,
) -> SamplingRequest:
    """Return a request for a completion of `prompt_ids` [P], of at most `most` tokens if that is given.

    `stop_token_ids` end it. There is no "model" in `settings` any more: see `with_model_sampling`.
    """
    max_new_tokens = settings.max_new_tokens if most is None else min(settings.max_new_tokens, most)
    return SamplingRequest(
        prompt_ids=prompt_ids,
        seed=seed,
        temperature=settings.temperature,
        top_p=_number(settings.top_p),
        top_k=int(_number(settings.top_k)),
        min_p=_number(settings.min_p),
        repetition_penalty=_number(settings.repetition_penalty),
        min_new_tokens=min(settings.min_new_tokens, max_new_tokens),
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        stop=tuple(settings.stop),
    )


def describe_sampling(asked: RolloutConfig, config: Config) -> list[str]:
    """Return what the user should know of how completions are sampled, a line each.

    `asked` is as it was given, `config` has numbers in place of "model".
    """
    rollout = config.rollout
    lines: list[str] = []
    if names := [name for name in _NEUTRAL if getattr(asked, name) == MODEL]:
        lines.append(f"sampling as the model's: {', '.join(f'{n} {getattr(rollout, n):g}' for n in names)}")
    if config.is_on_policy and (shaping := _describe_shaping(rollout, config.distill.temperature)):
        lines.append(
            f"rollouts are sampled with {shaping}, while the divergence is of the whole distribution at temperature "
            f"{config.distill.temperature:g}: it is averaged over other texts than the student's own"
        )
    return lines


def _describe_shaping(rollout: RolloutConfig, temperature: float) -> str:
    parts = [f"temperature {rollout.temperature:g}"] if rollout.temperature != temperature else []
    parts += [
        f"{name} {value:g}"
        for name, neutral in _NEUTRAL.items()
        if (value := _number(getattr(rollout, name))) != neutral
    ]
    return ", ".join(parts)


def _number(value: float | Literal["model"]) -> float:
    assert value != MODEL, "with_model_sampling comes first"
    return value


def _read_generation_config(directory: Path) -> dict[str, float]:
    from transformers import GenerationConfig

    if not (directory / "generation_config.json").is_file():
        return {}
    own = GenerationConfig.from_pretrained(directory)  # pyright: ignore[reportUnknownMemberType]
    values = {name: getattr(own, name, None) for name in _NEUTRAL}
    return {name: _convert(name)(value) for name, value in values.items() if value is not None}


def _convert(name: str) -> Callable[[float], float]:
    return int if name == "top_k" else float
