"""Random models small enough to make on the spot, taken apart for the writers."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from rayqd.config.sections import QuantConfig
from rayqd.export.quantized_model import QuantizedModel
from rayqd.model.fused_experts import quantizable_experts
from rayqd.quant import Quantized, make_grid, quantizable_layers

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
VOCABULARY_SIZE = 288

MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def small_model(
    architecture: str, *, tied: bool, dtype: torch.dtype = torch.bfloat16, head_dim: int = 16, **changes: Any
) -> PreTrainedModel:
    """Two layers, 64 wide, 4 heads of which 2 hold keys."""
    torch.manual_seed(0)
    config_class, model_class = MODELS[architecture]
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-5,
    }
    if architecture != "qwen2":  # which has no such setting
        sizes["head_dim"] = head_dim
    model = model_class(config_class(**sizes | changes))
    for parameter in model.parameters():  # parameters alone: a cast of the rotary buffers would move the logits
        parameter.data = torch.randn_like(parameter).mul_(0.1).to(dtype)
    return model.eval()


def byte_tokenizer(*, split: str = "gpt-2") -> PreTrainedTokenizerFast:
    """A byte-level BPE with three merges and two special tokens; splits text as GPT-2 or as Qwen2 does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    words = [*alphabet, *("".join(pair) for pair in merges), "<|end|>", "<|user|>"]
    core = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    if split == "gpt-2":
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        from tokenizers import Regex

        core.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>"],
        chat_template=TEMPLATE,
    )


def taken_apart(model: PreTrainedModel, quant: QuantConfig, *, tokenizer: Any = None, card: str = "") -> QuantizedModel:
    """`model`, rounded to nearest."""
    grid = make_grid(quant, model.dtype)
    quantized = {name: grid.quantize(linear.weight) for name, linear in quantizable_layers(model, quant).items()}
    fused = quantizable_experts(model, quant)
    for name, experts in fused.items():
        quantized |= experts.split(grid.quantize(model.get_parameter(name).flatten(0, 1)))
    return QuantizedModel(
        config=model.config,
        generation_config=model.generation_config,
        dense={name: tensor for name, tensor in model.state_dict().items() if name not in fused},
        quantized=quantized,
        quant=quant,
        dtype=model.dtype,
        tokenizer=tokenizer or byte_tokenizer(),
        card=card,
    )


@torch.no_grad()
def rounded(model: PreTrainedModel, parts: QuantizedModel) -> PreTrainedModel:
    """`model` with the values of its codes for weights."""
    grid = make_grid(parts.quant, parts.dtype)
    rows = {
        matrix.name: model.get_parameter(name).flatten(0, 1)[matrix.rows]
        for name, experts in quantizable_experts(model, parts.quant).items()
        for matrix in experts.matrices
    }
    for name, weight in parts.quantized.items():
        if name in rows:
            rows[name].copy_(grid.dequantize(weight))
            continue
        model.get_parameter(f"{name}.weight").copy_(grid.dequantize(weight))
    return model


def of_few_digits(weight: Quantized) -> Quantized:
    """Give scales four binary digits: a code times one is a bfloat16, so that no reader rounds it."""
    digits, exponents = torch.frexp(weight.scales.float())
    return Quantized(weight.codes, torch.ldexp((digits * 16).round() / 16, exponents).to(weight.scales.dtype))


def assert_same_tensors(loaded: PreTrainedModel, expected: PreTrainedModel) -> None:
    actual = loaded.state_dict()
    for name, tensor in expected.state_dict().items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name
