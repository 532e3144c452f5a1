"""Models and tokenizers, loaded so that student, teacher and export agree to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError
from rayqd.model.arithmetic import explain_missing_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rayqd.model.forward.mode import HeadForm


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """Load the causal language model of a checkpoint, in evaluation mode, on this process's device.

    Parameters get `dtype`; buffers such as the rotary frequencies keep float32 (casting them moves the logits). Raises
    ModelError where the logits are not a plain product of hidden states and output head.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from rayqd.model.forward.check import check_mode
    from rayqd.model.forward.of_model import attention_of
    from rayqd.model.forward.probe import find_mode

    if reason := explain_missing_bfloat16(dtype):
        raise ModelError(reason)
    with quiet_libraries():
        config = AutoConfig.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch_dtype(dtype), attn_implementation=attention_of(config)
        )
    model.eval().requires_grad_(False)
    model.to(device())  # pyright: ignore[reportArgumentType]
    _check_head(model, directory, find_mode(config).head)
    check_mode(model)
    return model


def load_meta_model(directory: Path) -> PreTrainedModel:
    """Build the same model without weights (on the meta device): its layers' names and shapes, at no cost."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_libraries(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))


def load_tokenizer(directory: Path) -> Any:
    """Load the fast tokenizer of a checkpoint, chat template included."""
    from transformers import AutoTokenizer

    with quiet_libraries():
        return AutoTokenizer.from_pretrained(directory)


def context_length(directory: Path) -> int:
    """Return how many tokens the model was made for, prompt and completion together."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(directory).get_text_config().max_position_embeddings)


def common_vocab_size(student: Path, teacher: Path) -> int:
    """Return how many ids both checkpoints' heads have: one tokenizer's models may pad them to different sizes."""
    from transformers import AutoConfig

    configs = [AutoConfig.from_pretrained(directory).get_text_config() for directory in (student, teacher)]
    return min(int(config.vocab_size) for config in configs)


def output_head(model: PreTrainedModel) -> torch.Tensor:
    """Return the output head's weight, [V, d]."""
    return model.get_output_embeddings().weight  # pyright: ignore


def load_head(directory: Path, dtype: str) -> torch.Tensor:
    """Load only the output head of a checkpoint, [V, d]; a tied one is the embedding. Raises ModelError without any."""
    from safetensors import safe_open

    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118 (not a dict)
                    return tensors.get_tensor(name).to(torch_dtype(dtype))
    raise ModelError(f"{directory} has neither lm_head.weight nor model.embed_tokens.weight; is it a language model?")


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a setting's name, `bfloat16`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def device() -> torch.device:
    """Return where this process computes: its GPU if it has one; Ray gives a worker no more than that."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_head(model: PreTrainedModel, directory: Path, form: HeadForm) -> None:
    """Raise ModelError unless the logits are a plain matrix product: only then hidden states carry the distribution."""
    if form.words:
        raise ModelError(f"{directory}: logits {form.words} are not supported")
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ModelError(f"{directory}: an output head with a bias is not supported")
