"""The runs of a comparison as they leave them, from a known truth, without a model."""

from pathlib import Path

import numpy as np

from rayqd.comparison.directory import ComparisonDirectory
from rayqd.comparison.inputs import Inputs
from rayqd.comparison.jobs import Job, Jobs
from rayqd.config.comparison import load_comparison
from rayqd.events import TEACHER, Arm, ArmKind, ArmResult, EvalEvent
from rayqd.metrics.fidelity import ByRow, Fidelity
from rayqd.runs.directory import RunDirectory
from rayqd.runs.result_file import DistillResult, MeasuredResult, QuantizeResult
from tests.example_events import step_event

INPUTS = Inputs(model="m", teacher="t", training_rows="a", heldout_rows="b", rayqd="0")
KL = {"rtn": 0.36, "gptq": 0.15, "off-policy": 0.10, "mixed": 0.101, "on-policy": 0.12, "theirs": 0.13}
ROWS = 60
FILE = """
name = "study"
runs_dir = "{directory}"
model = {{name = "m", dtype = "float32"}}
data.source = "quickstart"
eval.source = "quickstart"
learner.steps = 4
[compare]
{compare}
[compare.arms]
{arms}
"""
ARMS = "teacher = {}\nrtn = {}\ngptq = {}\noff-policy = {}\nmixed = {}\non-policy = {}"


def make_jobs(directory: Path, compare: str = "", arms: str = ARMS) -> Jobs:
    file = directory / "study.toml"
    file.write_text(FILE.format(directory=directory, compare=compare, arms=arms))
    return Jobs(load_comparison([f"@{file}"]))


def every_job(jobs: Jobs) -> list[Job]:
    steps = {arm.name: int(jobs.spec.compare.amount or jobs.base.learner.steps) for arm in jobs.trained_arms}
    return [*jobs.baselines(), *jobs.trained(steps)]


def measure(kl: float, seed: int | None, spread: float = 0.02) -> Fidelity:
    """Rows that are as hard for every arm; a seed that changes the KL by `spread` of it, and noise."""
    rows = np.random.default_rng(0)
    tokens = rows.integers(50, 250, ROWS)
    hardness = rows.gamma(4.0, 0.25, ROWS)
    own = np.random.default_rng([1 if seed is None else seed + 2, round(1e6 * kl)])
    factor = 1.0 if seed is None else 1 + spread * own.normal()
    sums = kl * factor * hardness * tokens * (1 + 0.05 * own.normal(size=ROWS))
    nll = 2.9 * tokens + sums
    return Fidelity(
        kl_to_teacher=float(sums.sum() / tokens.sum()),
        total_variation=0.1,
        top1_agreement=1 - float(np.sqrt(kl)) / 2,
        perplexity=float(np.exp(nll.sum() / tokens.sum())),
        num_tokens=int(tokens.sum()),
        by_row=ByRow(
            num_tokens=tuple(map(int, tokens)),
            kl=tuple(map(float, sums)),
            agrees=tuple(map(int, tokens // 2)),
            nll=tuple(map(float, nll)),
        ),
    )


def leave_run(job: Job, kl: float, spread: float = 0.02) -> None:
    """Write the job's directory as its command would."""
    command = job.arm.command
    run = RunDirectory(job.config, command)
    rtn = ArmResult(arm=Arm(kind=ArmKind.RTN, format="int4"), fidelity=measure(KL["rtn"], None))
    rows = [ArmResult(arm=TEACHER, fidelity=measure(0.0, None)), rtn]
    if command == "eval":
        found = ArmResult(arm=Arm(kind=ArmKind.MODEL), fidelity=measure(kl, None), bits_per_weight=6.5)
        took = {"total": 20.0}
        run.finish(MeasuredResult(name=job.config.name, rows=(rows[0], found), seconds=took, model=job.arm.path))
    elif command == "quantize":
        if job.arm.kind != "rtn":
            rows.append(ArmResult(arm=Arm(kind=ArmKind.GPTQ, format="int4"), fidelity=measure(kl, job.seed, spread)))
        run.finish(
            QuantizeResult(
                name=job.config.name,
                rows=tuple(rows),
                seconds={"total": 20.0},
                parts={"evaluation": 15.5, "start, data, loading": 4.5},
                method=job.config.quant.method,
            )
        )
    else:
        run.append(EvalEvent(step=0, arm=rtn.arm, fidelity=rtn.fidelity), 0.0)
        for step in range(1, job.config.learner.steps + 1):
            run.append(step_event(step), 0.0)
            half = Arm(kind=ArmKind.DISTILLED, step=step)
            if step == job.config.learner.steps // 2:
                run.append(EvalEvent(step=step, arm=half, fidelity=measure(1.3 * kl, job.seed, spread)), 0.0)
        student = ArmResult(arm=Arm(kind=ArmKind.DISTILLED, format="int4"), fidelity=measure(kl, job.seed, spread))
        on_policy = 60.0 if job.config.is_on_policy else 0.0
        run.finish(
            DistillResult(
                name=job.config.name,
                rows=(*rows, student),
                seconds={"total": 90.0 + on_policy},
                parts={"start": 40.0, "learner": 24.0, "waiting": 16.0 + on_policy, "between steps": 3.0, "end": 7.0},
                start_seconds={},
                num_steps=job.config.learner.steps,
            )
        )
    run.close()


def leave_all(jobs: Jobs, spread: float = 0.02) -> ComparisonDirectory:
    directory = ComparisonDirectory(jobs)
    for job in every_job(jobs):
        directory.begin(job, INPUTS)
        leave_run(job, KL[job.arm.name], spread)
    return directory
