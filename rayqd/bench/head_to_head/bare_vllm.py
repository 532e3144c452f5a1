"""vLLM alone, with a checkpoint as it is, for the same prompts and lengths: what rollouts cannot do without.

python -m rayqd.bench.head_to_head.bare_vllm WORKLOAD STEPS
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rayqd.bench.head_to_head.step_times import StepRecorder
from rayqd.bench.head_to_head.vllm_settings import set_vllm_environment
from rayqd.bench.head_to_head.workload import Workload, read_workload

_GPU_SHARE = 0.6


def generate(workload: Workload, steps_file: Path) -> None:
    """Write the completions of all steps, a step's at once, and record when each step ended."""
    import torch

    vllm: Any = import_module("vllm")
    engine = vllm.LLM(
        model=workload.model,
        dtype=workload.dtype,
        max_model_len=workload.length + 1,
        max_num_seqs=workload.num_sequences,
        gpu_memory_utilization=_GPU_SHARE,
        enforce_eager=not torch.cuda.is_available(),
        seed=workload.seed,
    )
    sampling = vllm.SamplingParams(
        temperature=workload.temperature,
        max_tokens=workload.new_tokens,
        min_tokens=workload.new_tokens,
        detokenize=False,
    )
    recorder = StepRecorder(steps_file, workload)
    for step in range(workload.steps):
        requests = workload.requests[step * workload.num_sequences : (step + 1) * workload.num_sequences]
        prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
        outputs = engine.generate(prompts, sampling, use_tqdm=False)
        lengths = {len(output.outputs[0].token_ids) for output in outputs}
        if lengths != {workload.new_tokens}:
            raise ValueError(f"vLLM wrote completions of {sorted(lengths)} tokens, not {workload.new_tokens}")
        if recorder.end_step():
            return


if __name__ == "__main__":
    set_vllm_environment(os.environ)
    generate(read_workload(Path(sys.argv[1])), Path(sys.argv[2]))
