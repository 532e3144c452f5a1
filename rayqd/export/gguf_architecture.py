"""An architecture as llama.cpp computes it: what a GGUF file says of it, and which settings a model of it may have.

Everything here follows llama.cpp's own converter (`conversion/`) and its graphs (`src/models/`). llama.cpp computes a
setting that its file does not mention as its architecture's usual value, without a word. So a setting that differs from
transformers' default and is neither written nor without effect refuses the model, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter
from gguf.constants import MODEL_ARCH

from rayqd.errors import ConfigError

ROPE_TYPES = ("default", "linear", "llama3")

# Written for every architecture, told by the tensors themselves, or without effect on what is computed.
_USUAL_SETTINGS = """
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings sliding_window use_sliding_window
max_window_layers _sliding_window_pattern layer_types hidden_act hidden_activation original_max_position_embeddings
initializer_range initializer_factor use_cache attention_dropout dropout resid_pdrop embd_pdrop residual_dropout
embedding_dropout hidden_dropout pretraining_tp dtype torch_dtype architectures model_type name_or_path
_name_or_path transformers_version bos_token_id eos_token_id pad_token_id cls_token_id sep_token_id unk_token_id
return_dict output_hidden_states output_attentions problem_type id2label label2id num_labels chunk_size_feed_forward
is_encoder_decoder quantization_config base_model_tp_plan base_model_pp_plan _attn_implementation
attn_implementation torchscript experts_implementation
"""
_USUAL = frozenset(_USUAL_SETTINGS.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFArchitecture:
    """How llama.cpp computes an architecture."""

    arch: MODEL_ARCH
    activations: tuple[str, ...] = ("silu",)
    rotates_neighbours: bool = False  # of a llama's head, of which transformers rotates the halves: rows change places
    norm_shift: float = 0.0  # what transformers adds to the weights of norms, and llama.cpp has in the file
    settings: Mapping[str, Callable[[Any], bool]] | None = None  # further ones, and whether a model's value is possible
    add: Callable[[GGUFWriter, Any], None] | None = None  # writes those, and what else is this architecture's own
    has_windows: bool = False

    def check(self, config: Any) -> None:
        """Raise ConfigError, naming it, at a setting that llama.cpp would not compute."""
        name = config.model_type
        activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", self.activations[0])
        if activation not in self.activations:
            raise ConfigError(f"GGUF has no {name} with hidden_act {activation}: export it as it is usually written")
        settings = self.settings or {}
        defaults = type(config)().to_dict()
        for key, value in config.to_dict().items():
            if key in settings:
                if not settings[key](config):
                    raise ConfigError(f"GGUF has no {name} with {key} {value}: export it as it is usually written")
            elif key in defaults and key not in _USUAL and value != defaults[key]:
                raise ConfigError(
                    f"GGUF export does not know {key} {value} of {name}: export it as it is usually written"
                )
        for rope in _ropes(config):
            if rope.get("rope_type", "default") not in ROPE_TYPES:
                raise ConfigError(f"GGUF export does not know the rotary embedding {rope['rope_type']}")
        if not self.has_windows and _has_window(config):
            raise ConfigError(
                f"GGUF has no {name} with a sliding window, and this one has one of {config.sliding_window} tokens: "
                "export it as it is usually written"
            )


def rope_of(config: Any, kind: str = "full_attention") -> Any:
    """Return the rotary settings of layers of a `kind`; those of all layers where a model has but one."""
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get(kind, rope) if kind in rope else rope


def head_dim_of(config: Any) -> int:
    """Return the size of an attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotary_dim_of(config: Any) -> int:
    """Return how many elements of a head are rotated."""
    factor = rope_of(config).get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int(head_dim_of(config) * (1.0 if factor is None else factor))


def _ropes(config: Any) -> list[Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    return nested or [rope]


def _has_window(config: Any) -> bool:
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    used = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    return bool(window) and bool(used) and window < config.max_position_embeddings
