"""Models and tokenizers, loaded so that student, teacher and export agree to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from rayqd.console.quiet import quiet_libraries
from rayqd.errors import ModelError
from rayqd.losses.output_head import Head, OutputHead
from rayqd.model.arithmetic import explain_missing_bfloat16
from rayqd.model.model_class import auto_class
from rayqd.model.remote_code import is_trusted
from rayqd.model.source_weights import match_names, read_stored_tensors
from rayqd.model.spread import DeviceMap
from rayqd.model.tekken import TEKKEN, convert_tekken

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rayqd.model.forward.mode import HeadForm

UNLIMITED = 2**31 - 1
_CONTEXT_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_sequence_length")


def load_model(directory: Path, dtype: str, device_map: DeviceMap | None = None) -> PreTrainedModel:
    """Load the causal language model of a checkpoint, in evaluation mode, on this process's device.

    Parameters get `dtype`; buffers such as the rotary frequencies keep float32 (casting them moves the logits).
    `device_map`: where its layers lie instead (see `rayqd.model.spread`). Raises ModelError where no way of running it
    gives what the model itself computes.
    """
    from transformers import AutoConfig

    from rayqd.model.forward.check import check_mode
    from rayqd.model.forward.of_model import attention_of

    if reason := explain_missing_bfloat16(dtype):
        raise ModelError(reason)
    with quiet_libraries():
        config = AutoConfig.from_pretrained(directory)
        model = auto_class(config).from_pretrained(
            directory,
            dtype=torch_dtype(dtype),
            attn_implementation=attention_of(config),
            device_map=None if device_map is None else dict(device_map),
        )
    model.eval().requires_grad_(False)
    if device_map is None:
        model.to(device())  # pyright: ignore[reportArgumentType]
    check_mode(model)
    return model


def load_meta_model(directory: Path) -> PreTrainedModel:
    """Build the same model without weights (on the meta device): its layers' names and shapes, at no cost."""
    from transformers import AutoConfig

    with quiet_libraries(), torch.device("meta"):
        config = AutoConfig.from_pretrained(directory)
        return auto_class(config).from_config(config)


def load_tokenizer(directory: Path) -> Any:
    """Load the fast tokenizer of a checkpoint, chat template included. Raises ModelError for one that gives no text."""
    from transformers import AutoTokenizer

    with quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=is_trusted(directory))
        if hasattr(tokenizer, "is_fast") or not (directory / TEKKEN).is_file():
            return tokenizer
        return convert_tekken(directory, tokenizer)


def context_length(directory: Path) -> int:
    """Return how many tokens the model was made for, prompt and completion together; `UNLIMITED` where none is said.

    Recurrent models and those with ALiBi have no positions to run out of.
    """
    from transformers import AutoConfig

    with quiet_libraries():
        config = AutoConfig.from_pretrained(directory).get_text_config()
    found = (getattr(config, name, None) for name in _CONTEXT_LENGTHS)
    return next((int(value) for value in found if value), UNLIMITED)


def common_vocab_size(student: Path, *teachers: Path) -> int:
    """Return how many ids all checkpoints' heads have: one tokenizer's models may pad them to different sizes."""
    from transformers import AutoConfig

    configs = [AutoConfig.from_pretrained(directory).get_text_config() for directory in (student, *teachers)]
    return min(int(config.vocab_size) for config in configs)


def output_head(model: PreTrainedModel) -> Head:
    """Return the output head, [V, d]: its weight where the logits are the plain product, else an `OutputHead`."""
    from rayqd.model.forward.of_model import mode_of

    module = cast(Any, model).get_output_embeddings()
    return make_head(module.weight, getattr(module, "bias", None), mode_of(model).head)


def make_head(weight: torch.Tensor, bias: torch.Tensor | None, form: HeadForm) -> Head:
    """Return the head of a weight [V, d] and a bias [V] whose logits have `form`."""
    if bias is None and form.is_plain:
        return weight
    shift = None if bias is None else bias.detach() * form.bias_scale
    return OutputHead(weight=weight, bias=shift, scale=form.scale, cap=form.cap)


def load_head(directory: Path, dtype: str) -> Head:
    """Load only the output head of a checkpoint, [V, d]; a tied one is the embedding. Raises ModelError without any."""
    from rayqd.model.forward.probe import find_mode

    model = load_meta_model(directory)
    stored = read_stored_tensors(directory)
    names = match_names(model, stored)
    module = cast(Any, model).get_output_embeddings()

    def read(parameter: torch.Tensor | None) -> torch.Tensor | None:
        own = [name for name, each in model.named_parameters(remove_duplicate=False) if each is parameter]
        source = next((names.renamed[name] for name in own if name in names.renamed), None)
        return None if source is None else stored[source].read().to(torch_dtype(dtype))

    weight, bias = read(module.weight), read(getattr(module, "bias", None))
    if weight is None or (bias is None) != (getattr(module, "bias", None) is None):
        raise ModelError(f"{directory} has no output head; is it a language model?")
    return make_head(weight, bias, find_mode(model.config).head)


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a setting's name, `bfloat16`."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def device() -> torch.device:
    """Return where this process computes: its GPU if it has one; Ray gives a worker no more than that."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
