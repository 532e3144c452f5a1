"""A tiny copy of a model's configuration: every kind of layer that the model has, few layers, small everywhere.

What makes an architecture what it is stays as it was: kinds of layers, rotary scaling, multipliers, caps, activation
functions, tied embeddings. Only sizes shrink, each field by the meaning of its name, which configurations share. What
is reckoned in tokens (windows, the length that a rotary embedding was trained for) shrinks to `WINDOW` and
`ORIGINAL_LENGTH`, so that rows of a few dozen tokens meet all cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from rayqd.console.quiet import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

VOCAB_SIZE = 128
WIDTH, HEADS, HEAD_DIM = 64, 4, 16
WINDOW = 8  # tokens of a sliding window or of a chunk of attention
ORIGINAL_LENGTH = 32  # tokens that a scaled rotary embedding was trained for
MOST_TOKENS = 128  # of a row
_MOST_LAYERS = 8

# What a field's name means, the first that matches. A value that is 0 or None means "without", and stays.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(decoder_|audio_)?vocab_size(_per_layer_input)?", VOCAB_SIZE),
    (r"ngram_vocab_size_base|num_centroids", VOCAB_SIZE),
    (r"split_ngram_parts|centroid_intermediate_top_k|make_ngram_vocab_size_divisible_by", 4),
    (r"(index_)?(head_dim|dim_head|kv_channels)|attention_head_size|v_head_dim|d_head", HEAD_DIM),
    (r"(global|swa|index|linear|linear_key|linear_value)_head_dim|swa_v_head_dim|attention_value_head_dim", HEAD_DIM),
    (r"qk_nope_head_dim", HEAD_DIM),
    (r"qk_rope_head_dim|rotary_dim", HEAD_DIM // 2),
    (r"qk_head_dim", HEAD_DIM + HEAD_DIM // 2),
    (r"attention_head_dim", 2 * WIDTH // HEADS),  # Zamba's attention is twice as wide as the model
    (r"attention_hidden_size", 2 * WIDTH),
    (r".*lora_rank|hc_lowrank|gated_norm_rank|laurel_rank|adapter_rank|d_rel", 16),
    (r"(mamba_)?(d_head|headdim|head_dim)", HEAD_DIM),
    (r"(mamba_)?(n_heads|num_heads)|n_mamba_heads", HEADS),
    (r"mamba_d_ssm|lru_width", WIDTH),
    (r"(mamba_)?d_state|state_size|ssm_state_size", 8),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"(mamba_)?chunk_size|block_size|index_block_size|block_multiple_of|ffn_round_up_to_multiple_of", WINDOW),
    (r"mamba_n_groups|mamba_ngroups|n_groups", 1),
    (r"hidden_size_per_layer_input|ple_embed_dim|index_head_dim", 16),
    (r"hidden_size|n_embd|d_model|embedding_dim|backbone_hidden_size|word_embed_proj_dim|embedding_size", WIDTH),
    (r"input_embedding_size|output_embedding_size|dim_model_base|router_hidden_size", WIDTH),
    (r"(shared_expert_|moe_shared_expert_|moe_|dense_|shared_)?intermediate_size(_mlp)?|.*ffn_hidden_size", 2 * WIDTH),
    (r".*ffn_dim|n_inner|dim_ff|dff|feed_forward_size|ffn_hidden_size|emb_dim|d_inner", 2 * WIDTH),
    (r"linear_num_value_heads", HEADS),
    (r"linear_num_key_heads", 2),
    (r"(.*_)?(num_attention_heads|attention_heads|n_head|n_heads|num_heads|num_query_groups|index_n_heads)", HEADS),
    (r"num_attention_heads_per_layer", HEADS),
    (r"(moe_)?num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"zero_expert_num", 2),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|top_k_experts", 2),
    (r"n_group|topk_group|num_expert_group|o_groups", 1),
    (r"index_topk(_blocks)?", MOST_TOKENS),
    (r"sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size|local_attention", WINDOW),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length", MOST_TOKENS),
    (r"original_max_position_embeddings", ORIGINAL_LENGTH),
    (r"max_target_positions|rel_extent|seq_length", MOST_TOKENS),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"attn_layer_period|expert_layer_period|no_rope_layer_interval|global_attn_every_n_layers", 2),
    (r"attn_layer_offset|expert_layer_offset", 1),
    (r"full_attention_interval|_?sliding_window_pattern", 2),
)
_KEY_VALUE_HEADS = re.compile(r"(swa_|global_)?num_(key_value_heads|kv_heads)|kv_n_heads|num_global_key_value_heads")
_LAYER_COUNTS = re.compile(r"num_hidden_layers|(n|num)_layers?|num_blocks|decoder_layers|num_decoder_layers|n_layer")
# Numbers of one layer among all, which mean nothing once layers are left out.
_LAYER_INDICES = {"mtp_layers_block_type", "max_window_layers", "moe_layer_end_index", "num_kv_shared_layers"}
_MAMBA_2 = ("num_heads", "head_dim")
_PARTS = {"attn_config", "ffn_config"}  # configurations of a part of the model
_EXACT = {re.compile(pattern): size for pattern, size in _SIZES}


def make_tiny(config: PreTrainedConfig, *, most_layers: int = _MOST_LAYERS) -> PreTrainedConfig:
    """Return a copy of `config` of at most `most_layers` layers, every kind of which it keeps, and of small sizes.

    Raises what the configuration's class raises where such sizes do not fit together.
    """
    with quiet_libraries():
        return type(config).from_dict(_shrink(values_of(config), most_layers))


def values_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields from which `from_dict` makes `config` again.

    Configurations of a part take no fields but their own, and are written with those of every configuration (DBRX).
    """
    from transformers import PreTrainedConfig

    values: dict[str, Any] = config.to_dict()
    common = PreTrainedConfig().to_dict().keys()
    for part in _PARTS & values.keys():
        if isinstance(values[part], Mapping):
            values[part] = {field: value for field, value in values[part].items() if field not in common}
    return values


def _shrink(values: Mapping[str, Any], most_layers: int) -> dict[str, Any]:
    kept = _kept_layers(values, most_layers)
    count = _layer_count(values)
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and ("model_type" in value or name in _PARTS):
            small[name] = _shrink(cast(Mapping[str, Any], value), most_layers)
        elif name in {"rope_parameters", "rope_scaling", "rope_type"}:
            small[name] = _shrink_rope(value)
        else:
            small[name] = _shrink_field(name, value, values, kept, count)
    return _mend(small, values, kept)


def _shrink_field(name: str, value: Any, values: Mapping[str, Any], kept: Sequence[int], count: int) -> Any:
    if value is None or isinstance(value, (bool, str, float)) or value == 0 or name.startswith("_attn"):
        return value
    if isinstance(value, Sequence):
        sequence = list(cast(Sequence[Any], value))
        sizes = [sequence[i] for i in kept] if len(sequence) == count else sequence
        return [_shrink_field(name, size, values, kept, -1) for size in sizes]
    if name.endswith("_token_id") or name.endswith("_index"):
        return value if value < VOCAB_SIZE else VOCAB_SIZE - 1
    if _LAYER_COUNTS.fullmatch(name):
        return len(kept)
    if _KEY_VALUE_HEADS.fullmatch(name):
        heads = values.get("num_attention_heads") or values.get("n_heads") or values.get("n_head") or value
        return min(value, HEADS if value == heads else 2)
    if name == "max_window_layers":
        return 0 if value < count else len(kept)
    if not isinstance(value, int):
        return value
    for pattern, size in _EXACT.items():
        if pattern.fullmatch(name):
            return min(value, size)
    return value


def _shrink_rope(rope: Any) -> Any:
    """Scale a rotary embedding's lengths down together; what it was trained for becomes `ORIGINAL_LENGTH`."""
    if not isinstance(rope, Mapping):
        return rope
    values = dict(cast(Mapping[str, Any], rope))
    if any(isinstance(value, Mapping) for value in values.values()):  # by kind of layer
        return {kind: _shrink_rope(value) for kind, value in values.items()}
    if values.get("original_max_position_embeddings"):
        values["original_max_position_embeddings"] = ORIGINAL_LENGTH
    for name in ("long_factor", "short_factor"):
        if isinstance(values.get(name), Sequence):
            # of the first channels, each of which turns at its own speed
            width = int(HEAD_DIM * float(values.get("partial_rotary_factor") or 1.0)) // 2
            values[name] = _spread(values[name], width)
    if isinstance(values.get("mrope_section"), Sequence):
        values["mrope_section"] = [2, 3, 3] if len(values["mrope_section"]) == 3 else [4, 4]
    return values


def _spread(values: Sequence[float], count: int) -> list[float]:
    """Return `count` of the values, from the first to the last."""
    return [values[round(i * (len(values) - 1) / max(count - 1, 1))] for i in range(count)]


def _layer_count(values: Mapping[str, Any]) -> int:
    counts = [v for n, v in values.items() if _LAYER_COUNTS.fullmatch(n) and isinstance(v, int)]
    return counts[0] if counts else -1


def _kept_layers(values: Mapping[str, Any], most_layers: int) -> list[int]:
    """Return the indices of the layers that stay: the first and the last of each kind, and at least two."""
    count = _layer_count(values)
    if count < 0:
        return []
    lists = [
        cast(Sequence[Any], value)
        for name, value in values.items()
        if isinstance(value, Sequence) and not isinstance(value, str) and len(cast(Sequence[Any], value)) == count
    ]
    if not lists:
        return list(range(min(count, 4 if _has_period(values) else 2)))
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i in range(count):
        kind = repr([_plain(values[i]) for values in lists])
        first.setdefault(kind, i)
        last[kind] = i
    kept = [*first.values(), *(i for i in last.values() if i not in first.values())][:most_layers]
    others = (i for i in range(count) if i not in kept)
    return sorted([*kept, *_take(others, 2 - len(kept))])


def _plain(value: Any) -> Any:
    return list(cast(Iterable[Any], value)) if isinstance(value, (list, tuple)) else value


def _take(values: Iterable[int], count: int) -> list[int]:
    return [value for value, _ in zip(values, range(max(count, 0)), strict=False)]


def _has_period(values: Mapping[str, Any]) -> bool:
    """Whether layers differ by a rule on their number."""
    rules = re.compile(r".*(_period|_interval|_pattern|_every_n_layers|_layer_step|_sparse_step|dense_replace)")
    return any(rules.fullmatch(name) and value for name, value in values.items())


def _mend(small: dict[str, Any], values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Make sizes fit that follow from several others."""
    rope_width = values.get("qk_rope_head_dim")
    if rope_width and values.get("head_dim") == rope_width:  # multi-head latent attention: what turns, alone
        small["head_dim"] = small["qk_rope_head_dim"]
    for heads, width in (("mamba_n_heads", "mamba_d_head"), ("n_mamba_heads", "mamba_headdim"), _MAMBA_2):
        expand = small.get("mamba_expand") or small.get("expand")
        if expand and isinstance(small.get(heads), int) and isinstance(small.get(width), int):
            inner = small.get("mamba_d_ssm") or int(expand * WIDTH)
            small[heads] = max(inner // small[width], 1)
    if isinstance(values.get("per_layer_config"), Mapping):
        of_layer = {int(i): layer for i, layer in values["per_layer_config"].items()}
        small["per_layer_config"] = {
            new: _shrink_fields(of_layer[old], values) for new, old in enumerate(kept) if old in of_layer
        }
    if values.get("num_kv_shared_layers"):
        small["num_kv_shared_layers"] = sum(i >= _layer_count(values) - values["num_kv_shared_layers"] for i in kept)
    if isinstance(values.get("hybrid_layer_ids"), Sequence):
        small["hybrid_layer_ids"] = [new for new, old in enumerate(kept) if old in values["hybrid_layer_ids"]]
    if "kv_channels" in values and "attention_head_dim" in values:
        small["kv_channels"] = small["attention_head_dim"] // 2
    return small


def _shrink_fields(values: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _shrink_field(name, value, whole, (), -1) for name, value in values.items()}
