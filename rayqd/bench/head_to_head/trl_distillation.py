"""TRL's DistillationTrainer: plain LoRA on 16-bit weights, colocated vLLM for the student's completions.

python -m rayqd.bench.head_to_head.trl_distillation WORKLOAD STEPS
"""

from __future__ import annotations

import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from rayqd.bench.head_to_head.step_times import trainer_callback
from rayqd.bench.head_to_head.trl_settings import trainer_settings
from rayqd.bench.head_to_head.vllm_settings import set_vllm_environment
from rayqd.bench.head_to_head.workload import Workload, read_workload


def train(workload: Workload, steps_file: Path) -> None:
    """Do the workload's steps, and record when each ended. Raises ValueError where its prompts are other tokens."""
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer

    torch.manual_seed(workload.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(workload.model, padding_side="left", truncation_side="left")
    check_prompts(tokenizer, workload)
    adapters = LoraConfig(
        r=workload.rank, lora_alpha=round(workload.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with tempfile.TemporaryDirectory() as directory:
        import_module("trl").DistillationTrainer(
            model=workload.model,
            teacher_model=workload.model,
            args=_arguments(workload, directory),
            train_dataset=_dataset(workload),
            processing_class=tokenizer,
            peft_config=adapters,
            callbacks=[trainer_callback(steps_file, workload)],
        ).train()


def check_prompts(tokenizer: Any, workload: Workload) -> None:
    """Raise ValueError unless this trainer, which tokenizes by itself, comes to the requests' own tokens."""
    for request in workload.requests:
        rendered = tokenizer.apply_chat_template(
            request.messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        if tuple(rendered["input_ids"]) != request.prompt_ids:
            raise ValueError(f"the prompt of TRL is other tokens than rayqd's: {request.prompt[:40]!r}")


def _arguments(workload: Workload, directory: str) -> Any:
    micro_batch = workload.microbatch_sequences()
    return import_module("trl").DistillationConfig(
        **trainer_settings(workload, directory, micro_batch),
        model_init_kwargs={"dtype": workload.dtype},
        teacher_model_init_kwargs={"dtype": workload.dtype},
        gradient_checkpointing=workload.gradient_checkpointing,
        max_completion_length=workload.new_tokens,
        generation_kwargs={"min_tokens": workload.new_tokens},
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=workload.length + 1,
    )


def _dataset(workload: Workload) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": request.messages[:-1]} for request in workload.requests])


if __name__ == "__main__":
    set_vllm_environment(os.environ)
    train(read_workload(Path(sys.argv[1])), Path(sys.argv[2]))
