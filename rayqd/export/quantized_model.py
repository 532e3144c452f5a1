"""A quantized model as every writer takes it: configuration, dense tensors, codes and scales, tokenizer, card."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.model.load import load_tokenizer
from rayqd.quant import Quantized

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

    from rayqd.model.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """What an export is written from. Codes and scales are stored as they are given and never computed again."""

    config: PreTrainedConfig
    generation_config: GenerationConfig | None
    dense: Mapping[str, Tensor]  # by the names of the state dict
    quantized: Mapping[str, Quantized]  # by the layers' qualified names
    quant: QuantConfig
    dtype: torch.dtype  # floating tensors of `dense` are stored in it
    tokenizer: PreTrainedTokenizerBase | None
    card: str = ""  # the text of README.md; none is written without

    @classmethod
    def from_student(cls, student: Student, source: Path, quant: QuantConfig) -> QuantizedModel:
        """Take the codes of the student's forward pass, with the tokenizer and chat template of `source`."""
        return cls(
            config=student.model.config,
            generation_config=student.model.generation_config,
            dense=student.dense_tensors(),
            quantized=dict(student.quantized_layers()),
            quant=quant,
            dtype=student.grid.dtype,
            tokenizer=load_tokenizer(source),
        )

    def dense_to_store(self) -> dict[str, Tensor]:
        """Return `dense` without the weights of quantized layers and without a tied lm_head."""
        left_out = {f"{layer}.weight" for layer in self.quantized}
        if self.config.tie_word_embeddings:
            left_out.add("lm_head.weight")
        return {name: tensor for name, tensor in self.dense.items() if name not in left_out}

    def to_stored(self, tensor: Tensor) -> Tensor:
        """Return a dense tensor as it is stored: on the CPU, floating ones in `dtype`."""
        return tensor.detach().to("cpu", self.dtype if tensor.is_floating_point() else tensor.dtype).contiguous()

    def save_metadata(self, directory: Path, quantization_config: dict[str, JsonValue]) -> None:
        """Write config.json, generation_config.json, the tokenizer's files and the card."""
        config = self.model_config()
        config.quantization_config = quantization_config
        for part in (config, self.generation_config, self.tokenizer):
            if part is not None:
                part.save_pretrained(directory)  # pyright: ignore[reportUnknownMemberType]
        self.save_card(directory)

    def save_card(self, directory: Path) -> None:
        """Write README.md, if the model has a card."""
        if self.card:
            (directory / "README.md").write_text(self.card)

    def model_config(self) -> PreTrainedConfig:
        """Return a copy of `config` that names dtype and architecture."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        config = copy.deepcopy(self.config)
        config.dtype = self.dtype
        if not config.architectures:  # vLLM chooses its model by it
            config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        return config
