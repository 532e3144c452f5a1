"""Models and tokenizers, loaded so that student, teacher and export agree to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(directory: Path, dtype: str) -> PreTrainedModel:
    """The causal language model of a checkpoint, in evaluation mode, on this process's device.

    Parameters get `dtype`; buffers such as the rotary frequencies keep float32 (casting them moves the logits).
    """
    from transformers import AutoModelForCausalLM

    from rayqd.model import packed

    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch_dtype(dtype), attn_implementation=packed.NAME
        )
    _check_head(model, directory)
    model.eval().requires_grad_(False)
    model.to(device())  # pyright: ignore[reportArgumentType]
    return model


def skeleton(directory: Path) -> PreTrainedModel:
    """The same model without weights (on the meta device): its layers' names and shapes, at no cost."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_libraries(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))


def load_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_libraries():
        return AutoTokenizer.from_pretrained(directory)


def context_length(directory: Path) -> int:
    """Tokens the model was made for, prompt and completion together."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(directory).get_text_config().max_position_embeddings)


def common_vocabulary(student: Path, teacher: Path) -> int:
    """The ids that both checkpoints' heads have; models of one tokenizer may pad their heads to different sizes."""
    from transformers import AutoConfig

    return min(int(AutoConfig.from_pretrained(each).get_text_config().vocab_size) for each in (student, teacher))


def output_head(model: PreTrainedModel) -> torch.Tensor:
    """The output head's weight, [V, d]."""
    return model.get_output_embeddings().weight  # pyright: ignore


def load_head(directory: Path, dtype: str) -> torch.Tensor:
    """Only the output head of a checkpoint, [V, d]; tied heads are found at the embedding."""
    from safetensors import safe_open

    for wanted in ("lm_head.weight", "model.embed_tokens.weight"):
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                if wanted in tensors.keys():  # noqa: SIM118 (not a dict)
                    return tensors.get_tensor(wanted).to(torch_dtype(dtype))
    raise ModelError(f"{directory} has neither lm_head.weight nor model.embed_tokens.weight; is it a language model?")


def torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_head(model: PreTrainedModel, directory: Path) -> None:
    """Hidden states carry the distribution exactly only if the logits are a plain matrix product."""
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    for setting in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, setting, None) not in (None, 1, 1.0):
            raise ModelError(f"{directory}: {setting} changes the logits after the output head; not supported")
    if getattr(head, "bias", None) is not None:
        raise ModelError(f"{directory}: an output head with a bias is not supported")
