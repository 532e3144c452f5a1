"""Models of known shapes with random weights, made where they are measured: no download, and speed does not mind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from rayqd.errors import ConfigError
from rayqd.model.load import device, torch_dtype
from rayqd.model.packed_attention import NAME as ATTENTION

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The part of transformers' configuration that decides the sizes of a decoder."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None  # hidden_size / num_attention_heads
    tie_word_embeddings: bool = True

    def to_config(self) -> PretrainedConfig:
        """Return transformers' configuration of this shape."""
        from transformers import AutoConfig

        return AutoConfig.for_model(**{name: value for name, value in asdict(self).items() if value is not None})


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool = True) -> ModelShape:
    return ModelShape(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )


SHAPES = {
    "smollm2-135m": ModelShape(
        model_type="llama",
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
    ),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32),
    "qwen3-8b": _qwen3(4096, 12_288, 36, 32, tied=False),
}


def random_model(shape: str, dtype: str) -> PreTrainedModel:
    """Make a model of one of SHAPES on this process's device, with the attention that rayqd trains with."""
    from transformers import AutoModelForCausalLM

    if shape not in SHAPES:
        raise ConfigError(f"flag --shape={shape}: must be one of {', '.join(SHAPES)}")
    torch.manual_seed(0)
    config = SHAPES[shape].to_config()
    with device():
        model = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(dtype), attn_implementation=ATTENTION)
    return model.eval().requires_grad_(False)
