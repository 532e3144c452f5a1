"""Random models of other architectures than Llama, a few layers of each, in float32."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MLA = {"kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
DEEPSEEK = {
    **MLA,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
QWEN_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": QWEN_MOE,
    "qwen2_moe": {**QWEN_MOE, "shared_expert_intermediate_size": 64},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": DEEPSEEK,
    "glm4_moe": {k: v for k, v in DEEPSEEK.items() if k not in MLA},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
    "jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 32,
    },
    "phi3": {},
    "gpt_neox": {},
    "gpt2": {},
    "llama": {},
}


def make_config(model_type: str, **settings: Any) -> Any:
    """Make a tiny configuration of an architecture of `SETTINGS`."""
    return AutoConfig.for_model(model_type, **{**COMMON, **SETTINGS[model_type], **settings})


def make_model(model_type: str, *, scale: float = 4.0, **settings: Any) -> PreTrainedModel:
    """Make the model; a random one whose matrices are not `scale` times as large is all but uniform."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(model_type, **settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return model.eval().requires_grad_(False)
