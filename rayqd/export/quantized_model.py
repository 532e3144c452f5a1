"""A quantized model as every writer takes it: configuration, dense tensors, codes and scales, tokenizer, card."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import JsonValue
from torch import Tensor

from rayqd.config.sections import QuantConfig
from rayqd.export.dense_layers import summarize_dense_layers
from rayqd.export.source_files import copy_source_files, make_config, read_config, write_config
from rayqd.export.source_names import layer_source_name, name_as_source
from rayqd.model.load import load_tokenizer
from rayqd.model.rounded_head import RoundedHead
from rayqd.model.source_weights import SourceNames, StoredTensor
from rayqd.quant import Quantized

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from rayqd.model.student import Student


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """What an export is written from. Codes and scales are stored as they are given and never computed again.

    With a `source`, all names are those of its files; without one, those of the model that transformers makes.
    """

    config: PreTrainedConfig
    generation_config: GenerationConfig | None
    dense: Mapping[str, Tensor]  # by the names of the state dict
    quantized: Mapping[str, Quantized]  # by the layers' qualified names
    quant: QuantConfig
    dtype: torch.dtype  # of scales, and of what is computed with
    tokenizer: PreTrainedTokenizerBase | None
    card: str = ""  # the text of README.md; none is written without
    source: Path | None = None  # the checkpoint whose config.json, tokenizer and other files the export takes over
    is_tied: bool = True  # the head is the embedding wherever the source's config says so
    carried: Mapping[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])  # stored unchanged
    aliases: Sequence[str] = ()  # the quantized layers as transformers calls them, where that is another name
    dense_layers: Sequence[str] = ()  # those that are not quantized, beside `quant.ignore`
    chat_template: str | None = None  # in place of the source's
    head: RoundedHead | None = None  # of quant.head; where there is none, `dense` has it

    @classmethod
    def from_student(cls, student: Student, source: Path, quant: QuantConfig) -> QuantizedModel:
        """Take the codes of the student's forward pass, with the tokenizer and chat template of `source`."""
        return cls.from_model(
            student.model,
            source,
            quant,
            dense=student.dense_tensors(),
            quantized=dict(student.quantized_layers()),
            dtype=student.grid.dtype,
            head=student.rounded_head,
        )

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        source: Path,
        quant: QuantConfig,
        *,
        dense: Mapping[str, Tensor],
        quantized: Mapping[str, Quantized],
        dtype: torch.dtype,
        head: RoundedHead | None = None,
    ) -> QuantizedModel:
        """Take the tensors of `model`, which was loaded from `source` and may have had its layers replaced since."""
        parts = name_as_source(model, source, dense, quantized)
        return cls(
            config=model.config,
            generation_config=model.generation_config,  # pyright: ignore[reportArgumentType]
            dense=parts.dense,
            quantized=parts.quantized,
            quant=quant,
            dtype=dtype,
            tokenizer=load_tokenizer(source),
            source=source,
            is_tied=parts.is_tied,
            carried=parts.carried,
            aliases=parts.aliases,
            dense_layers=parts.dense_layers,
            head=None if head is None else _name_head(head, parts.names),
        )

    def with_tied_head_dense(self) -> QuantizedModel:
        """Return the model with a tied head as the values of its codes, for formats whose readers load no others."""
        return replace(self, head=None) if self.head is not None and self.head.is_tied else self

    @property
    def head_layers(self) -> dict[str, Quantized]:
        """Return the codes of the head by the name that they are stored under: of a tied one, the embedding's."""
        return {} if self.head is None else {self.head.layer: self.head.codes}

    def dense_to_store(self) -> dict[str, Tensor]:
        """Return `dense` without the weights of quantized layers and without a tied lm_head."""
        left_out = {f"{layer}.weight" for layer in [*self.quantized, *self.head_layers]}
        if getattr(self.config, "tie_word_embeddings", False) and self.is_tied:  # not every class has it
            left_out.add("lm_head.weight")
        return {name: tensor for name, tensor in self.dense.items() if name not in left_out}

    def to_stored(self, tensor: Tensor) -> Tensor:
        """Return a dense tensor as it is stored, on the CPU; without a source floating ones in `dtype`."""
        casts = self.source is None and tensor.is_floating_point()
        return tensor.detach().to("cpu", self.dtype if casts else tensor.dtype).contiguous()

    def carried_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is stored as the source has it, read from there one tensor at a time."""
        for name, stored in self.carried.items():
            yield name, stored.read()

    def stored_bytes(self) -> int:
        """Return about how many bytes the tensors take in an export."""
        floating, others = self.dtype.itemsize, 0
        for tensor in self.dense_to_store().values():
            others += tensor.numel() * (floating if tensor.is_floating_point() else tensor.dtype.itemsize)
        for weight in [*self.quantized.values(), *self.head_layers.values()]:
            zero_points = 0 if weight.zero_points is None else weight.zero_points.numel() // 2
            others += weight.codes.numel() * weight.bits // 8 + weight.scales.nbytes + zero_points
        return others + sum(stored.num_bytes for stored in self.carried.values())

    def ignored_layers(self) -> list[str]:
        """Return the layers that a loader must leave dense, beside `quant.ignore`; branches as patterns."""
        taken = [*self.quantized, *self.aliases, *self.head_layers, *(self.head.aliases if self.head else ())]
        return summarize_dense_layers([layer for layer in self.dense_layers if layer not in taken], taken)

    def save_metadata(self, directory: Path, quantization_config: dict[str, JsonValue]) -> None:
        """Write config.json, generation_config.json, the tokenizer's files and the card."""
        config = self.model_config()
        if self.source is not None:
            copy_source_files(self.source, directory)
            changed = make_config(
                read_config(self.source),
                quantization_config,
                dtype=self.dtype,
                architecture=(config.architectures or [""])[0],
                is_tied=self.is_tied,
            )
            write_config(directory, changed)
        else:
            config.quantization_config = quantization_config
            for part in (config, self.generation_config, self.tokenizer):
                if part is not None:
                    part.save_pretrained(directory)  # pyright: ignore[reportUnknownMemberType]
        if self.chat_template is not None:  # readers prefer this file to what tokenizer_config.json says
            (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
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


def _name_head(head: RoundedHead, names: SourceNames) -> RoundedHead:
    """Return `head` with its modules named as a checkpoint's files name them."""
    own = [name for name in (head.modules.head, head.modules.embedding) if name is not None]
    found, *embedding = (layer_source_name(names, name) for name in own)
    modules = replace(head.modules, head=found, embedding=embedding[0] if embedding else None)
    return replace(head, modules=modules, aliases=tuple(own))
