"""The architectures that a GGUF file can hold: what llama.cpp calls them, and what of their settings it computes.

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


def _has_windows_every(period: int) -> Callable[[Any], bool]:
    """Return whether all layers but each `period`-th have the window, as llama.cpp takes for granted."""

    def check(config: Any) -> bool:
        types = [
            "full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(len(config.layer_types))
        ]
        return list(config.layer_types) == types

    return check


def _usual_attention_scale(largest: int) -> Callable[[Any], bool]:
    """Return whether scores are divided as llama.cpp does: by the head's size, but in the model of `largest` layers."""

    def check(config: Any) -> bool:
        is_largest = config.num_hidden_layers == largest
        usual = config.hidden_size // config.num_attention_heads if is_largest else config.head_dim
        return config.query_pre_attn_scalar == usual

    return check


def _any(config: Any) -> bool:
    return True


def _leaves_out_every_fourth(config: Any) -> bool:
    return list(config.no_rope_layers) == [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]


def _is_false(key: str) -> Callable[[Any], bool]:
    return lambda config: not getattr(config, key)


def _is_true(key: str) -> Callable[[Any], bool]:
    return lambda config: bool(getattr(config, key))


def _add_granite(writer: GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _add_gemma2(writer: GGUFWriter, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _add_gemma3(writer: GGUFWriter, config: Any) -> None:
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(float(rope_of(config, "sliding_attention")["rope_theta"]))


def _add_phi3(writer: GGUFWriter, config: Any) -> None:
    writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    writer.add_sliding_window(0)  # as Phi-4 says that it has none


def _add_cohere(writer: GGUFWriter, config: Any) -> None:
    writer.add_logit_scale(config.logit_scale)


def _add_experts(writer: GGUFWriter, config: Any) -> None:
    writer.add_expert_count(getattr(config, "num_experts", None) or config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if size := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(size)
    if size := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(size)


_MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
_GELU = ("gelu_pytorch_tanh",)
_EXPERT_SIZES = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")
_EXPERTS: Mapping[str, Callable[[Any], bool]] = {  # the rest of them concerns training alone
    **dict.fromkeys((*_EXPERT_SIZES, "shared_expert_intermediate_size"), _any),
    **dict.fromkeys(("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"), _any),
}
_EVERY_LAYER: Mapping[str, Callable[[Any], bool]] = {
    "decoder_sparse_step": lambda config: config.decoder_sparse_step == 1,
    "mlp_only_layers": _is_false("mlp_only_layers"),
}
_TIED: Mapping[str, Callable[[Any], bool]] = {"tie_word_embeddings": _is_true("tie_word_embeddings")}

ARCHITECTURES: Mapping[str, GGUFArchitecture] = {
    "llama": GGUFArchitecture(
        arch=MODEL_ARCH.LLAMA, rotates_neighbours=True, settings={"attention_bias": _any, "mlp_bias": _any}
    ),
    "mistral": GGUFArchitecture(arch=MODEL_ARCH.LLAMA, rotates_neighbours=True),
    "qwen2": GGUFArchitecture(arch=MODEL_ARCH.QWEN2),
    "qwen3": GGUFArchitecture(arch=MODEL_ARCH.QWEN3),
    "mixtral": GGUFArchitecture(arch=MODEL_ARCH.LLAMA, rotates_neighbours=True, settings=_EXPERTS, add=_add_experts),
    "qwen2_moe": GGUFArchitecture(
        arch=MODEL_ARCH.QWEN2MOE,
        settings={**_EXPERTS, **_EVERY_LAYER, "norm_topk_prob": _is_false("norm_topk_prob")},
        add=_add_experts,
    ),
    "qwen3_moe": GGUFArchitecture(
        arch=MODEL_ARCH.QWEN3MOE,
        settings={**_EXPERTS, **_EVERY_LAYER, "norm_topk_prob": _is_true("norm_topk_prob")},
        add=_add_experts,
    ),
    "olmoe": GGUFArchitecture(
        arch=MODEL_ARCH.OLMOE,
        settings={**_EXPERTS, "norm_topk_prob": _is_false("norm_topk_prob")},
        add=_add_experts,
    ),
    "smollm3": GGUFArchitecture(
        arch=MODEL_ARCH.SMOLLM3,
        rotates_neighbours=True,
        settings={"no_rope_layers": _leaves_out_every_fourth, "no_rope_layer_interval": _any},
    ),
    "arcee": GGUFArchitecture(arch=MODEL_ARCH.ARCEE, rotates_neighbours=True, activations=("relu2",)),
    "granite": GGUFArchitecture(
        arch=MODEL_ARCH.GRANITE, rotates_neighbours=True, settings=dict.fromkeys(_MULTIPLIERS, _any), add=_add_granite
    ),
    "gemma": GGUFArchitecture(arch=MODEL_ARCH.GEMMA, activations=_GELU, norm_shift=1.0, settings=_TIED),
    "gemma2": GGUFArchitecture(
        arch=MODEL_ARCH.GEMMA2,
        activations=_GELU,
        norm_shift=1.0,
        settings={
            **_TIED,
            "layer_types": _has_windows_every(2),
            "query_pre_attn_scalar": _usual_attention_scale(46),
            "attn_logit_softcapping": _is_true("attn_logit_softcapping"),
            "final_logit_softcapping": _is_true("final_logit_softcapping"),
        },
        add=_add_gemma2,
        has_windows=True,
    ),
    "gemma3_text": GGUFArchitecture(
        arch=MODEL_ARCH.GEMMA3,
        activations=_GELU,
        norm_shift=1.0,
        settings={
            **_TIED,
            "layer_types": _has_windows_every(6),
            "query_pre_attn_scalar": _usual_attention_scale(62),
            "final_logit_softcapping": _any,
            "attn_logit_softcapping": _is_false("attn_logit_softcapping"),
            "use_bidirectional_attention": _is_false("use_bidirectional_attention"),
        },
        add=_add_gemma3,
        has_windows=True,
    ),
    "olmo2": GGUFArchitecture(arch=MODEL_ARCH.OLMO2),
    "phi3": GGUFArchitecture(arch=MODEL_ARCH.PHI3, add=_add_phi3),
    "starcoder2": GGUFArchitecture(
        arch=MODEL_ARCH.STARCODER2,
        activations=_GELU,
        settings={"norm_epsilon": _any, "use_bias": _is_true("use_bias")},
    ),
    "seed_oss": GGUFArchitecture(arch=MODEL_ARCH.SEED_OSS, settings={"attention_out_bias": _any}),
    "ernie4_5": GGUFArchitecture(arch=MODEL_ARCH.ERNIE4_5, settings={"use_bias": _is_false("use_bias")}),
    "glm4": GGUFArchitecture(arch=MODEL_ARCH.GLM4),
    "cohere": GGUFArchitecture(
        arch=MODEL_ARCH.COMMAND_R,
        settings={**_TIED, "logit_scale": _any, "layer_norm_eps": _any, "use_qk_norm": _any},
        add=_add_cohere,
    ),
    "nemotron": GGUFArchitecture(
        arch=MODEL_ARCH.NEMOTRON, activations=("relu2",), norm_shift=1.0, settings={"norm_eps": _any}
    ),
}
