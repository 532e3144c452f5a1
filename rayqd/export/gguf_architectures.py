"""The architectures that a GGUF file can hold, by transformers' model_type.

Everything here follows llama.cpp's own converter (`conversion/`) and its graphs (`src/models/`); `gguf_architecture`
says what becomes of settings that are not mentioned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gguf import GGUFWriter
from gguf.constants import MODEL_ARCH

from rayqd.export.gguf_architecture import GGUFArchitecture, rope_of


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


def _add_cohere2(writer: GGUFWriter, config: Any) -> None:
    writer.add_logit_scale(config.logit_scale)
    writer.add_sliding_window(config.sliding_window)


def _add_olmo(writer: GGUFWriter, config: Any) -> None:
    writer.add_layer_norm_eps(1e-5)  # transformers' OlmoLayerNorm has no other


def _add_window(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)


def _add_stablelm(writer: GGUFWriter, config: Any) -> None:
    writer.add_parallel_residual(config.use_parallel_residual)


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
_UNTIED: Mapping[str, Callable[[Any], bool]] = {"tie_word_embeddings": _is_false("tie_word_embeddings")}
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
    "cohere2": GGUFArchitecture(
        arch=MODEL_ARCH.COHERE2,
        settings={
            **_TIED,
            "layer_types": _has_windows_every(4),
            **dict.fromkeys(("logit_scale", "layer_norm_eps"), _any),
        },
        add=_add_cohere2,
        has_windows=True,
    ),
    "olmo": GGUFArchitecture(
        arch=MODEL_ARCH.OLMO, rotates_neighbours=True, settings={"clip_qkv": _is_false("clip_qkv")}, add=_add_olmo
    ),
    "olmo3": GGUFArchitecture(
        arch=MODEL_ARCH.OLMO2,
        settings={"layer_types": _has_windows_every(4)},
        add=_add_window,
        has_windows=True,
    ),
    "exaone4": GGUFArchitecture(
        arch=MODEL_ARCH.EXAONE4,
        settings={  # with windows layers without them do not rotate; llama.cpp takes any of 64 layers for such a one
            "sliding_window": lambda config: config.sliding_window is None,
            "sliding_window_pattern": _any,
            "num_hidden_layers": lambda config: config.num_hidden_layers != 64,
        },
    ),
    "hunyuan_v1_dense": GGUFArchitecture(arch=MODEL_ARCH.HUNYUAN_DENSE),
    "stablelm": GGUFArchitecture(
        arch=MODEL_ARCH.STABLELM,
        settings={
            **_UNTIED,
            **dict.fromkeys(("layer_norm_eps", "use_qkv_bias", "partial_rotary_factor"), _any),
            **{key: _is_false(key) for key in ("use_parallel_residual", "qk_layernorm")},
        },
        add=_add_stablelm,
    ),
    "phi": GGUFArchitecture(
        arch=MODEL_ARCH.PHI2,
        activations=("gelu_new",),
        settings={
            **_UNTIED,
            **dict.fromkeys(("layer_norm_eps", "partial_rotary_factor"), _any),
            "qk_layernorm": _is_false("qk_layernorm"),
        },
    ),
}
