"""The peers of `rayqd bench run`: which packages each needs, which arms it can do, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from rayqd.bench.head_to_head.workload import ARMS, Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another way to do a step, or a part of one."""

    name: str  # as `--peers` has it
    label: str
    module: str  # of this package, run as a process with WORKLOAD and STEPS
    packages: tuple[str, ...]  # as they are imported
    remark: str  # what it does, and does not do, for the table's legend
    arms: tuple[Arm, ...] = ARMS
    why_not: str = ""  # why not the other arms
    rollouts_alone: bool = False  # it trains nothing
    heeds_checkpointing: bool = False  # the workload's gradient_checkpointing, by which it takes less memory


_PACKAGE = __name__.rpartition(".")[0]
_VLLM_ALONE = "writes completions alone"

PEERS = (
    Peer(
        name="trl-gkd",
        label="TRL GKDTrainer",
        module=f"{_PACKAGE}.trl_gkd",
        packages=("trl", "torchao", "peft", "datasets"),
        remark="the original study's settings: torchao's INT4 fake quantization, adapters outside the rounding, "
        "transformers' generate, micro-batches of 4 sequences, no gradient checkpointing, whole logits in memory",
    ),
    Peer(
        name="trl-distillation",
        label="TRL DistillationTrainer",
        module=f"{_PACKAGE}.trl_distillation",
        packages=("trl", "vllm", "peft", "datasets"),
        remark="plain LoRA on 16-bit weights, colocated vLLM, chunked loss: no INT4 rounding, neither in the step "
        "nor in the rollouts",
        arms=("on-policy",),
        why_not="it is always on-policy",
        heeds_checkpointing=True,
    ),
    Peer(
        name="vllm",
        label="vLLM alone",
        module=f"{_PACKAGE}.bare_vllm",
        packages=("vllm",),
        remark="the 16-bit model writes the same requests: no teacher, no training, no weights that change",
        arms=("on-policy",),
        why_not=_VLLM_ALONE,
        rollouts_alone=True,
    ),
    Peer(
        name="vllm-int4",
        label="vLLM alone, INT4",
        module=f"{_PACKAGE}.bare_vllm",
        packages=("vllm",),
        remark="the same with what rayqd's run has exported: the model that its rollout workers serve",
        arms=("on-policy",),
        why_not=_VLLM_ALONE,
        rollouts_alone=True,
    ),
)
BY_NAME = {peer.name: peer for peer in PEERS}
ON_EXPORT = "vllm-int4"  # runs the checkpoint that rayqd's own run leaves


def missing_packages(packages: Sequence[str]) -> list[str]:
    """Return those of `packages` that are not installed."""
    return [name for name in packages if not _is_installed(name)]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
