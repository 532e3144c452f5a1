"""What TRL's trainers are told alike, whichever of them does the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayqd.bench.head_to_head.workload import Workload


def trainer_settings(workload: Workload, directory: str, micro_batch: int) -> dict[str, Any]:
    """Return the fields of a TrainingArguments for the workload's steps, in micro-batches of so many sequences."""
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "output_dir": directory,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": workload.num_sequences // micro_batch,
        "max_steps": workload.steps,
        "learning_rate": workload.lr,
        "weight_decay": 0.0,
        "bf16": workload.dtype == "bfloat16",
        "fp16": workload.dtype == "float16",
        "use_cpu": not has_gpu,
        "dataloader_pin_memory": has_gpu,
        "beta": workload.beta,
        "temperature": workload.temperature,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": workload.seed,
    }
