"""`rayqd eval --as-run`: a model that others made, measured as it is, as a run that stands beside those of rayqd's own.

check ─► score the held-out rows with the teacher ─► load the model as transformers does, measure ─► result and page
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from rayqd.commands.evaluate import evaluate
from rayqd.commands.evaluated_models import check_measured
from rayqd.commands.given_models import check_given_model, find_given_model, read_dtype
from rayqd.comparison.inputs import digest_model
from rayqd.config import Config
from rayqd.config.resolved import with_absolute_paths, with_values
from rayqd.console.result_table import print_result
from rayqd.console.say import say
from rayqd.driver.frozen import with_frozen_settings
from rayqd.errors import ModelError, RayqdError
from rayqd.events import TEACHER, Arm, ArmKind, ArmResult, EvalEvent
from rayqd.export.write import dense_bits, weight_bytes
from rayqd.model.load import load_meta_model
from rayqd.model.source import teacher_directories
from rayqd.report.write import write_report
from rayqd.runs.directory import RunDirectory
from rayqd.runs.ended import record_abnormal_exit
from rayqd.runs.environment import collect_environment
from rayqd.runs.result_file import MeasuredResult
from rayqd.runs.time_parts import round_parts
from rayqd.spans import start_clock

GIVEN_MODEL = Arm(kind=ArmKind.MODEL)
# Of torch where memory or a kernel is missing, of transformers and the packages that it loads formats with, of a disk.
_FAULTS = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError, MemoryError)
_NOT_NOW = {"eval.tasks": None, "eval.continuations": 0}  # a later `rayqd eval RUN` asks for them


def measure_as_run(
    name: str, config: Config, console: Console | None = None, *, began: float | None = None
) -> MeasuredResult:
    """Measure the model that `name` means against its teacher; returns what result.json says.

    KL and perplexity on the held-out rows. A run that has finished only tells its result, if it was of the same files.
    `began` is when the command was given, in seconds since the epoch. Raises a RayqdError that says in one line what is
    wrong.
    """
    console = console or Console()
    began = start_clock(began)
    config = with_frozen_settings(with_absolute_paths(config))
    directory = find_given_model(name, trusts_code=config.model.trust_remote_code)
    run_dir = RunDirectory(config, command="eval")
    try:
        if remark := run_dir.set_damaged_result_aside():
            say(console, remark)
        result = run_dir.result
        if not isinstance(result, MeasuredResult):
            run_dir.forget_metrics_after(-1)
            with record_abnormal_exit(run_dir.path):
                check_given_model(directory, config)
                result = _measure(directory, config, console, began)
                run_dir.append(EvalEvent(step=0, arm=GIVEN_MODEL, fidelity=result.student.fidelity), time.time())
                run_dir.finish(result)
            write_report(config, result)
        else:
            check_measured(result, run_dir.path, directory)
            say(console, f"{run_dir.path} has finished already; this is its result")
        print_result(console, result, run_dir.path, title="a model made elsewhere")
        run_dir.upload()
    finally:
        run_dir.close()
    return result


def _measure(directory: Path, config: Config, console: Console, began: float) -> MeasuredResult:
    say(console, f"{config.name}: {directory} as it is, in {config.model.dtype}")
    model_digest = digest_model(directory)
    try:
        found = evaluate(directory, with_values(config, _NOT_NOW), console, keeps=False)
    except RayqdError:
        raise
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:300]
        own = read_dtype(directory)
        hint = f"; its own dtype is {own}: --model.dtype {own}" if own and own != config.model.dtype else ""
        raise ModelError(
            f"{directory} cannot be measured in {config.model.dtype} here: {type(error).__name__}: {reason}{hint}"
        ) from error
    teachers = teacher_directories(config)
    ended = time.time()
    return MeasuredResult(
        name=config.name,
        rows=(
            ArmResult(
                arm=TEACHER,
                fidelity=found.teacher,
                bits_per_weight=dense_bits(*teachers),
                size_bytes=weight_bytes(*teachers),
            ),
            ArmResult(
                arm=GIVEN_MODEL,
                fidelity=found.model,
                bits_per_weight=_count_bits(directory),
                size_bytes=weight_bytes(directory) or None,
            ),
        ),
        seconds={"total": round(ended - began, 1)},
        finished=round(ended, 1),
        parts=round_parts({"evaluation": ended - began}),
        model=str(directory),
        model_digest=model_digest,
        environment=collect_environment(),
    )


def _count_bits(directory: Path) -> float | None:
    """Return the bits of a weight over the whole model, by the size of its files; None where they are not tensors'."""
    size = weight_bytes(directory)
    return 8 * size / sum(p.numel() for p in load_meta_model(directory).parameters()) if size else None
