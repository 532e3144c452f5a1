"""TRL's GKDTrainer with the settings of the study that rayqd grew out of.

The student's weights go through torchao's fake quantization, its adapters beside them; transformers generates. The
study's step has micro-batches of 4 sequences, generated one after the other; no gradient checkpointing.

    python -m rayqd.bench.head_to_head.trl_gkd WORKLOAD STEPS
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayqd.bench.head_to_head.step_times import linear_layers, trainer_callback
from rayqd.bench.head_to_head.trl_settings import trainer_settings
from rayqd.bench.head_to_head.workload import Workload, read_workload

if TYPE_CHECKING:
    from torch import Tensor

_MICRO_BATCH = 4  # sequences, in the study


def train(workload: Workload, steps_file: Path) -> None:
    """Do the workload's steps, and record when each ended."""
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(workload.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(workload.model)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    with tempfile.TemporaryDirectory() as directory:
        trainer = import_module("trl.experimental.gkd").GKDTrainer(
            model=_student(workload),
            teacher_model=_load(workload),
            args=_arguments(workload, directory),
            data_collator=Collator(tokenizer.pad_token_id),
            train_dataset=_dataset(workload),
            processing_class=tokenizer,
            callbacks=[trainer_callback(steps_file, workload)],
        )
        trainer.generation_config.min_new_tokens = workload.new_tokens
        trainer.train()


def _load(workload: Workload) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(workload.model, dtype=getattr(torch, workload.dtype))
    return model.to("cuda") if torch.cuda.is_available() else model


def _student(workload: Workload) -> Any:
    """Return the model in fake quantization, all linear layers but the output head, with adapters."""
    from peft import LoraConfig, get_peft_model
    from torch import nn

    quantization: Any = import_module("torchao.quantization")
    qat: Any = import_module("torchao.quantization.qat")
    model = _load(workload)
    names = linear_layers(model)
    quantization.quantize_(
        model,
        qat.QATConfig(quantization.Int4WeightOnlyConfig(group_size=workload.group_size), step="prepare"),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and name.rpartition(".")[2] in names,
    )
    adapters = LoraConfig(
        r=workload.rank, lora_alpha=round(workload.alpha), target_modules=list(names), task_type="CAUSAL_LM"
    )
    return get_peft_model(model, adapters)


def _arguments(workload: Workload, directory: str) -> Any:
    micro_batch = next(n for n in range(_MICRO_BATCH, 0, -1) if workload.num_sequences % n == 0)
    return import_module("trl.experimental.gkd").GKDConfig(
        **trainer_settings(workload, directory, micro_batch),
        gradient_checkpointing=False,
        lmbda=1.0 if workload.arm == "on-policy" else 0.0,
        max_new_tokens=workload.new_tokens,
        max_length=workload.length,
    )


def _dataset(workload: Workload) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {"messages": r.messages, "prompt_ids": list(r.prompt_ids), "completion_ids": list(r.completion_ids)}
            for r in workload.requests
        ]
    )


class Collator:
    """What GKDTrainer reads of a micro-batch, padded on the left: the requests' own tokens."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[Any]) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and labels [B, P + C], prompts and prompt_attention_mask [B, P]."""
        sequences = [[*row["prompt_ids"], *row["completion_ids"]] for row in rows]
        labels = [[-100] * len(row["prompt_ids"]) + list(row["completion_ids"]) for row in rows]
        prompts = [list(row["prompt_ids"]) for row in rows]
        return {
            "input_ids": _pad_left(sequences, self._pad_id),
            "attention_mask": _pad_left([[1] * len(ids) for ids in sequences], 0),
            "labels": _pad_left(labels, -100),
            "prompts": _pad_left(prompts, self._pad_id),
            "prompt_attention_mask": _pad_left([[1] * len(ids) for ids in prompts], 0),
        }


def _pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    import torch

    width = max(len(row) for row in rows)
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    train(read_workload(Path(sys.argv[1])), Path(sys.argv[2]))
