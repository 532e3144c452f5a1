"""`rayqd export`: a run's newest checkpoint as files for others, and whether those files are what was trained."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from rayqd.config import Config, differences
from rayqd.config.sections.markers import ChangesEvaluationOnly
from rayqd.console.say import say
from rayqd.data import load_run_data
from rayqd.errors import ConfigError, DataError, ModelError, RunError, StorageError
from rayqd.events import ArmResult
from rayqd.export.digest import find_differing_layers
from rayqd.export.hub import check_push, push
from rayqd.export.load import load_export, read_kind, read_quantized_model
from rayqd.export.logits import (
    check_logits,
    compare_logits,
    compute_packed_logits,
    compute_student_logits,
    short_row,
)
from rayqd.export.quantized_model import QuantizedModel
from rayqd.export.source_names import match_export
from rayqd.export.verdict import Check, Verdict, print_verdict, write_verdict
from rayqd.export.verify import MAX_KL, compare, compute_token_logprobs, measure_divergence
from rayqd.export.write import Kind, check_kind, default_kind, export, parse_kind, write
from rayqd.files import directory_bytes
from rayqd.learner.checkpoint import DIGESTS, Checkpoints, load_checkpoint
from rayqd.learner.initialization import Initialization
from rayqd.model.load import context_length, load_tokenizer, torch_dtype
from rayqd.model.source import student_directory
from rayqd.model.student import Student
from rayqd.quant import make_grid
from rayqd.rollout.parity import explain_missing_vllm, measure_logprob_change, measure_vllm_change
from rayqd.runs.config_file import load_run_config
from rayqd.runs.paths import CHECKPOINTS, CONFIG, EXPORT, RESULT
from rayqd.runs.result_file import read_measured_model, read_result
from rayqd.types import IntArray, Rollout

NUM_ROWS = 16  # held-out rows that the KL is taken over
NUM_SEQUENCES, MAX_SEQUENCE_TOKENS = 4, 512  # what kernels are asked about


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run's newest checkpoint holds, or the best one where `checkpoint.best` is set."""

    student: Student
    source: Path
    step: int
    digests: Mapping[str, Tensor]  # of the weights that training saw; empty where it left none


def export_run(
    run_dir: Path,
    config: Config,
    *,
    out: Path | None = None,
    kind_name: str | None = None,
    verify: bool = False,
    overwrite: bool = False,
    push_to: str | None = None,
    is_public: bool = False,
    console: Console | None = None,
) -> int:
    """Export the run, or with `verify` check the export that is there; returns the exit code, 1 where it differs.

    `push_to` names the repository of a model hub that it is then uploaded to: private unless `is_public`, and never
    where it differs.
    """
    console = console or Console()
    if is_public and push_to is None:
        raise ConfigError("flag --public: goes with --push OWNER/NAME")
    config = _of_run(run_dir, config)
    kind = parse_kind(kind_name) if kind_name else default_kind(config.quant)
    directory = out or run_dir / (EXPORT if kind == default_kind(config.quant) else f"{EXPORT}-{kind}")
    stays = (verify or push_to is not None) and directory.exists() and not overwrite
    if push_to is not None:
        check_push(push_to)
    if stays:
        read_kind(directory)
    else:
        _check_replaceable(directory, overwrite)
    trained = load_trained(run_dir, config) if verify or not stays else None
    if stays:
        use = "verified" if verify else "uploaded"
        say(console, f"{directory} is there and is {use} as it is (--overwrite writes it again)")
    else:
        _write(run_dir, config, trained, directory, kind, overwrite)
        if not verify:
            _check_logits(run_dir, config, trained, directory)
        of = f"step {trained.step}" if trained else f"{run_dir / EXPORT}"
        say(console, f"{directory}: {kind} of {of}, {directory_bytes(directory) / 1e6:,.1f} MB")
        if kind == "gptq" and config.quant.rule == "asymmetric":
            say(
                console,
                "zero points make it gptq_v2, which gptqmodel reads and vLLM does not; --as awq has them for vLLM",
            )
    if verify:
        verdict = verify_export(run_dir, config, trained, directory)
        print_verdict(console, verdict)
        write_verdict(directory, verdict)
        if not verdict.passed:
            return 1
    if push_to is not None:
        say(console, f"{directory} is at {push(directory, push_to, is_private=not is_public)}")
    return 0


def load_trained(run_dir: Path, config: Config) -> Trained | None:
    """Load the student that the run exports, of its best or its newest checkpoint; None where there is none."""
    checkpoints = Checkpoints(run_dir / CHECKPOINTS, config.checkpoint.keep)
    steps = checkpoints.steps()
    if not steps:
        return None
    best = checkpoints.best_steps() if config.checkpoint.best else []
    step = (best or steps)[-1]
    source = student_directory(config)
    student = Initialization(config).load_student(source)
    checkpoint = load_checkpoint(checkpoints.best_path(step) if best else checkpoints.path(step))
    student.load_state_dict(checkpoint["student"])
    return Trained(student=student, source=source, step=step, digests=checkpoint.get(DIGESTS, {}))


def verify_export(run_dir: Path, config: Config, trained: Trained | None, directory: Path) -> Verdict:
    """Check weights, dense tensors, predictions, and what vLLM's kernels add to those."""
    model = load_export(directory, config.model.dtype, is_checked=False)
    checks = _compare(run_dir, config, trained, directory, model)
    if trained and trained.digests:
        checks.insert(0, _as_trained(trained, model))
    rollouts, why_not = _heldout(config)
    checks.append(_divergence(trained, model, rollouts, config, why_not))
    checks.append(_logits(trained, model, directory, config, rollouts))
    sequences = _sequences(rollouts)
    expected = [compute_token_logprobs(model, ids) for ids in sequences]
    kind = read_kind(directory)
    reason = explain_missing_vllm(kind, directory, config) or why_not
    if sequences and config.model.dtype != "float32":
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        exact = [compute_token_logprobs(model, ids) for ids in sequences]  # the yardstick for the kernels below
        checks.append(measure_logprob_change(config.model.dtype, expected, exact, "its rounding beside float32"))
    del model, trained
    if kind == "bitsandbytes" and sequences:
        own = load_export(directory, config.model.dtype, dense=False, is_checked=False)
        checks.append(measure_logprob_change(kind, [compute_token_logprobs(own, ids) for ids in sequences], expected))
        del own
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    checks.append(
        Check(name="vLLM", text=reason) if reason else measure_vllm_change(directory, config, sequences, expected)
    )
    return Verdict(directory=str(directory), checks=tuple(checks))


def _logits(trained: Trained | None, model: Any, directory: Path, config: Config, rollouts: Sequence[Rollout]) -> Check:
    """Compare what transformers computes from the files, with attention of its own, with what rayqd does."""
    row = short_row(rollouts)
    logits = compute_student_logits(trained.student, row) if trained else compute_packed_logits(model, row)
    found = compare_logits(directory, logits, row, config.model.dtype)
    return Check(name="logits", text=str(found), passed=found.is_rounding, value=found.difference)


def _check_logits(run_dir: Path, config: Config, trained: Trained | None, directory: Path) -> None:
    """Compare the files just written with the student, or with the run's export; raises ModelError."""
    row = short_row(_heldout(config)[0])
    if trained:
        logits = compute_student_logits(trained.student, row)
    else:
        logits = compute_packed_logits(load_export(run_dir / EXPORT, config.model.dtype, is_checked=False), row)
    check_logits(directory, logits, row, config.model.dtype)


def _of_run(run_dir: Path, config: Config) -> Config:
    """`config` where the run lies now. Raises when `run_dir` is no run, or a flag would make it another one."""
    saved = run_dir / CONFIG
    if not saved.is_file():
        raise ConfigError(f"{run_dir} is no run's directory: it has no {CONFIG}")
    changed = differences(load_run_config(saved), config, without=[ChangesEvaluationOnly])
    if changed:
        raise ConfigError(f"export takes the run as it is, and this would change it: {'; '.join(changed)}")
    whole = run_dir.absolute()
    return config.model_copy(update={"runs_dir": whole.parent, "name": whole.name})


def _write(
    run_dir: Path, config: Config, trained: Trained | None, directory: Path, kind: Kind, overwrite: bool
) -> None:
    rows = _rows(run_dir)
    if trained:
        export(trained.student, trained.source, config, directory, kind=kind, overwrite=overwrite, rows=rows)
        return
    parts = _exported_parts(run_dir, config)
    check_kind(kind, config, parts.config.model_type)
    write(parts, config, directory, kind=kind, overwrite=overwrite, rows=rows, command="quantize")


def _check_replaceable(directory: Path, overwrite: bool) -> None:
    """--overwrite replaces exports; not somebody's home directory."""
    if not directory.exists() or (directory.is_dir() and next(directory.iterdir(), None) is None):
        return
    try:
        read_kind(directory)
    except (ModelError, ConfigError):
        raise StorageError(f"{directory} is there and is no export, so it stays: choose another --out") from None
    if not overwrite:
        raise StorageError(f"{directory} exists already; add --overwrite to replace it, or choose another --out")


def _exported_parts(run_dir: Path, config: Config) -> QuantizedModel:
    if measured := read_measured_model(run_dir):
        raise RunError(f"{run_dir} measured {measured}, which was made elsewhere, and has nothing of its own to export")
    if not (run_dir / EXPORT).is_dir():
        raise RunError(f"{run_dir} has neither a checkpoint nor an export yet: let the run come that far")
    return read_quantized_model(run_dir / EXPORT, config)


def _rows(run_dir: Path) -> Sequence[ArmResult]:
    result = read_result(run_dir / RESULT)
    return result.rows if result else ()


def _compare(run_dir: Path, config: Config, trained: Trained | None, directory: Path, model: Any) -> list[Check]:
    grid = make_grid(config.quant, torch_dtype(config.model.dtype))
    if trained:
        student = trained.student
        found = compare(model, student.exported_layers(), student.dense_tensors(), student.grid)
        beside = f"step {trained.step}"
    else:
        parts = _exported_parts(run_dir, config)
        names = match_export(run_dir / EXPORT, parts.quantized)
        layers = {**parts.quantized, **parts.with_tied_head_dense().head_layers}
        found = compare(model, layers.items(), parts.dense, grid, names)
        beside = f"the codes in {run_dir / EXPORT}"
    weights = f"{found.num_quantized - found.quantized_differing} of {found.num_quantized} layers equal {beside}"
    dense_differing = len(found.differing) - found.quantized_differing
    return [
        Check(
            name="weights",
            text=f"{weights}, bit for bit",
            passed=not found.quantized_differing,
            differing=found.differing[: found.quantized_differing],
        ),
        Check(
            name="dense tensors",
            text=f"{max(found.num_dense - dense_differing, 0)} of {found.num_dense} equal, bit for bit",
            passed=not dense_differing,
            differing=found.differing[found.quantized_differing :],
        ),
    ]


def _as_trained(trained: Trained, model: Any) -> Check:
    differing = find_differing_layers(trained.digests, model)
    count = len(trained.digests)
    text = f"{count - len(differing)} of {count} layers have the digests that training left (SHA-256)"
    return Check(
        name="as trained", text=text, passed=not differing, differing=tuple(f"{n}: another digest" for n in differing)
    )


def _heldout(config: Config) -> tuple[list[Rollout], str]:
    """Return some held-out rows; or none, and why."""
    try:
        source = student_directory(config)
        _, heldout = load_run_data(load_tokenizer(source), config, context_length(source))
    except (DataError, ModelError) as error:
        return [], f"not measured: {error}"
    examples = heldout.examples[:NUM_ROWS]
    return [Rollout.from_data(example, step=-1, index=i) for i, example in enumerate(examples)], ""


def _divergence(
    trained: Trained | None, model: Any, rollouts: Sequence[Rollout], config: Config, why_not: str
) -> Check:
    if trained is None:
        return Check(name="KL", text="not measured: there is no checkpoint to measure from")
    if not rollouts:
        return Check(name="KL", text=why_not)
    with trained.student.as_exported():
        kl, num_tokens = measure_divergence(trained.student.model, model, rollouts, config.learner.microbatch_tokens)
    text = f"{kl:.1e} nats a token to the trained model over {num_tokens:,} held-out tokens (at most {MAX_KL:g})"
    return Check(name="KL", text=text, passed=kl <= MAX_KL, value=kl)


def _sequences(rollouts: Sequence[Rollout]) -> list[IntArray]:
    whole = [np.concatenate([r.prompt_ids, r.completion_ids]) for r in rollouts[:NUM_SEQUENCES]]
    return [ids[:MAX_SEQUENCE_TOKENS] for ids in whole]
