"""rayqd's own parts, each tried for a moment in a process of its own: versions say little of whether they run."""

from __future__ import annotations

from collections.abc import Iterator

from rayqd.config import Config
from rayqd.doctor.finding import Finding
from rayqd.doctor.probe import Outcome, unknown
from rayqd.errors import RayqdError
from rayqd.runs.storage.folder import redact
from rayqd.runs.storage.watched import LOOK_SECONDS, Patience, WatchedFolder

# Codes of 9, of which 8 stands for 0, so each weight is 1: sums of 0 + 1 + ... + 63, which bfloat16 holds.
_KERNEL = """
import json, torch
from rayqd.rollout.kernels import explain_missing_cpu_kernel, find_platform
if find_platform() != "cpu":
    print(json.dumps(["gpu", ""]))
elif reason := explain_missing_cpu_kernel():
    print(json.dumps(["dense", reason]))
else:
    from vllm import _custom_ops as ops
    codes = torch.full((4, 64 * 16 // 8), 0x99999999 - 2**32, dtype=torch.int32)
    hint = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    ones, x = torch.ones(2, 64).bfloat16(), torch.arange(64.0).bfloat16()[None]
    y = ops.cpu_gemm_wna16(
        input=x, q_weight=codes, scales=ones, zeros=None, bias=None, pack_factor=8, isa_hint=hint
    )
    expected = x.float() @ torch.ones(64, 64)
    print(json.dumps(["packed" if torch.equal(y.float(), expected) else "wrong", hint]))
"""
_RAY = """
import json, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(json.dumps(ray.get(ray.remote(lambda: 7).options(num_cpus=1).remote())))
"""
_MATMUL = """
import json, time, torch
from rayqd.model.arithmetic import choose_dtype
where = "cuda" if torch.cuda.is_available() else "cpu"
size = 4096 if where == "cuda" else 512
def best(dtype):
    a = torch.randn(size, size, device=where, dtype=dtype)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return min(times)
print(json.dumps([best(torch.bfloat16), best(torch.float32), *choose_dtype()]))
"""
_NCCL = """
import json, os, torch
import torch.distributed as dist, torch.multiprocessing as mp
def reduce(rank):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=2)
    x = torch.full((1 << 20,), rank + 1.0, device="cuda")
    dist.all_reduce(x)
    assert x.eq(3).all()
    dist.destroy_process_group()
context = mp.get_context("fork")
workers = [context.Process(target=reduce, args=(rank,)) for rank in (0, 1)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(json.dumps([worker.exitcode for worker in workers]))
"""
PROBES = {"4-bit kernel": _KERNEL, "ray task": _RAY}
NCCL = _NCCL  # where there are two GPUs
TIMING = _MATMUL  # by itself, when the others are done


def check_kernel(outcome: Outcome) -> Finding:
    """Report what form rollouts take: the 4-bit kernel computed as the dense product does, or why there is none."""
    subject = "4-bit kernel"
    if outcome.is_late:
        return unknown(subject, outcome)
    if outcome.failure:
        fix = "rollouts would end the same way: choose --quant.group_size 16, which runs dense"
        return Finding(subject=subject, mark="fail", text=outcome.failure, fix=fix)
    form, detail = outcome.value
    if form == "wrong":
        text = f"vLLM's kernel ({detail}) computes something else than the dense product"
        return Finding(subject=subject, mark="fail", text=text, fix="install another vLLM of 0.26 to 0.33")
    texts = {
        "dense": f"none, so rollouts run dense: {detail}",
        "packed": f"equals the dense product ({detail})",
        "gpu": "on the GPU; each run asks vLLM for every layer, and says what it took",
    }
    return Finding(subject=subject, mark="ok", text=texts[form])


def check_ray(outcome: Outcome) -> Finding:
    """Report whether Ray starts here and runs a task."""
    if outcome.is_late:
        return unknown("ray task", outcome)
    if outcome.failure or outcome.value != 7:
        fix = "see the newest session's logs in $RAY_TMPDIR or /tmp/ray"
        return Finding(subject="ray task", mark="fail", text=outcome.failure or "a wrong answer", fix=fix)
    return Finding(subject="ray task", mark="ok", text="started and ran")


def check_nccl(outcome: Outcome) -> Finding:
    """Report whether two GPUs add what each of them has."""
    if outcome.is_late:
        return unknown("nccl", outcome)
    if outcome.failure or any(outcome.value):
        fix = "NCCL_DEBUG=INFO tells more; NCCL_P2P_DISABLE=1 goes around broken links"
        text = outcome.failure or "an all-reduce between two GPUs fails"
        return Finding(subject="nccl", mark="fail", text=text, fix=fix)
    return Finding(subject="nccl", mark="ok", text="two GPUs add up")


def check_dtype(outcome: Outcome) -> Finding:
    """Report what `model.dtype = "auto"` takes here, beside what a product takes in either dtype."""
    if outcome.is_late:
        return unknown("model.dtype auto", outcome)
    if outcome.failure:
        return Finding(subject="model.dtype auto", mark="fail", text=outcome.failure, fix="reinstall torch")
    bfloat16, float32, dtype, why = outcome.value
    text = f"{dtype}, as {why}; a product takes {1e3 * bfloat16:.2g} ms in bfloat16, {1e3 * float32:.2g} in float32"
    return Finding(subject="model.dtype auto", mark="ok", text=text)


def check_storage(config: Config) -> Iterator[Finding]:
    """Write a file to `storage`, find it there and remove it; nothing where there is no storage."""
    if not config.storage:
        return
    try:
        patience = Patience(min(config.ray.stall_seconds, LOOK_SECONDS), "patience with a storage")
        WatchedFolder(config.storage, patience).check_rights()
    except RayqdError as error:
        yield Finding(subject="storage", mark="fail", text=str(error), fix="mend its address, rights or credentials")
        return
    yield Finding(subject="storage", mark="ok", text=f"{redact(config.storage)} takes a file, shows and removes it")
